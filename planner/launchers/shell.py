"""The part of bash that launch scripts are written in: assignments, arrays, continuations, expansions.

Nothing is executed. A word whose value cannot be known from the text (a command's output, a variable that
nobody sets, one that is set inside a condition) keeps its doubt, and only a reader that needs the value
complains.
"""

from __future__ import annotations

import ast
import operator
import re
from dataclasses import dataclass, field, replace
from itertools import pairwise

from planner.launchers.shell_words import split_array, statements

OPENING = ("if", "case", "for", "while", "until")
CLOSING = ("fi", "esac", "done")
NOISE = ("then", "else", "elif", "do", "export", "local", "readonly", "declare", "exec", "srun", "env")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?=)(.*)", re.DOTALL)
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(frozen=True)
class Word:
    """A word after expansion; ``doubt`` says why its value is not known (empty when it is).

    defaults: ``NAME=value`` of every ``${NAME:-value}`` in it that nothing set.
    """

    text: str
    doubt: str = ""
    defaults: tuple[str, ...] = ()


@dataclass
class Script:
    """Commands of a script as expanded words, its variables and arrays, its #SBATCH options."""

    commands: list[list[Word]] = field(default_factory=list)
    variables: dict[str, Word] = field(default_factory=dict)
    arrays: dict[str, list[Word]] = field(default_factory=dict)
    exported: dict[str, Word] = field(default_factory=dict)
    unset: set[str] = field(default_factory=set)
    sbatch: list[str] = field(default_factory=list)


def read_shell(text: str) -> Script:
    """The commands and variables of a script."""
    script = Script()
    script.sbatch = re.findall(r"^#SBATCH\s+(.*?)\s*$", text, re.MULTILINE)
    branches = Branches()
    for line, words, joined in statements(text):
        rest = branches.follow(script, words, joined)
        if rest and branches.is_taken is not False:
            is_certain = branches.is_taken is True
            _statement(script, rest, "" if is_certain else f"set inside a condition (line {line})")
    return script


@dataclass
class _Frame:
    """An open ``if`` (or loop): whether this branch runs, and whether an earlier one did; None = not known.

    tests: the condition while it is read, each with what joins it to the next one; None elsewhere.
    """

    is_taken: bool | None = None
    was_taken: bool | None = False
    tests: list[tuple[list[str], str]] | None = None


class Branches:
    """Which branches of a script run, as far as its own variables tell."""

    def __init__(self) -> None:
        self.frames: list[_Frame] = []

    @property
    def is_taken(self) -> bool | None:
        """Whether a statement here runs: True, False, or None when only running the script would tell."""
        states = [frame.is_taken for frame in self.frames]
        return False if False in states else None if None in states else True

    def follow(self, script: Script, words: list[str], joined: str) -> list[str]:
        """Take note of if, elif, else, fi and loops; the words that are left to run."""
        first = words[0]
        if first in OPENING:
            self.frames.append(_Frame(tests=[(words[1:], joined)] if first == "if" else None))
            return []
        if not self.frames:
            return words
        frame = self.frames[-1]
        if first in CLOSING:
            self.frames.pop()
            return []
        if first in ("elif", "else"):
            frame.was_taken = _either(frame.was_taken, frame.is_taken)
            frame.is_taken = None if frame.was_taken is None else not frame.was_taken
            frame.tests = [(words[1:], joined)] if first == "elif" else None
            return [] if first == "elif" else self._rest(script, words, joined)
        if frame.tests is not None:
            if first != "then":
                frame.tests.append((words, joined))
                return []
            is_open = None if frame.was_taken is None else not frame.was_taken
            frame.is_taken = _both(is_open, _condition(script, frame.tests))
            frame.tests = None
            return self._rest(script, words, joined)
        return words

    def _rest(self, script: Script, words: list[str], joined: str) -> list[str]:
        """What stands behind then or else, which may open another condition."""
        return self.follow(script, words[1:], joined) if len(words) > 1 else []


def _both(one: bool | None, two: bool | None) -> bool | None:
    return False if False in (one, two) else None if None in (one, two) else True


def _either(one: bool | None, two: bool | None) -> bool | None:
    return True if True in (one, two) else None if None in (one, two) else False


def _condition(script: Script, tests: list[tuple[list[str], str]]) -> bool | None:
    """Value of tests joined by && and ||, from the left as bash has it; None when one is not known."""
    value = _test(script, tests[0][0])
    for (_, joined), (words, _) in pairwise(tests):
        other = _test(script, words)
        value = _both(value, other) if joined == "&&" else _either(value, other) if joined == "||" else other
    return value


def _test(script: Script, words: list[str]) -> bool | None:
    """``[[ a == b ]]``, ``[ -z a ]`` and their like over known values; None for anything else."""
    if not words or words[0] not in ("[", "[[", "test"):
        return None
    inner = words[1:-1] if words[0] != "test" else words[1:]
    is_negated = inner[:1] == ["!"]
    parts = [_expand(script, raw) or [Word("")] for raw in inner[is_negated:]]
    if any(len(part) > 1 or part[0].doubt for part in parts):
        return None
    found: bool | None = None
    match [part[0].text for part in parts]:
        case ["-z", text]:
            found = text == ""
        case ["-n", text]:
            found = text != ""
        case [one, "==" | "=", two] if not set("*?[") & set(two):
            found = one == two
        case [one, "!=", two] if not set("*?[") & set(two):
            found = one != two
        case [one, ("-eq" | "-ne" | "-lt" | "-le" | "-gt" | "-ge") as name, two]:
            if one.lstrip("-").isdigit() and two.lstrip("-").isdigit():
                found = bool(getattr(operator, name[1:])(int(one), int(two)))
    return found if found is None else found != is_negated


def _statement(script: Script, words: list[str], doubt: str) -> None:
    is_export = False
    while words and (words[0] in NOISE or (words[0].startswith("-") and is_export)):
        is_export |= words[0] == "export"
        words = words[1:]
    if words and words[0] == "unset":
        script.unset |= set(words[1:])
        return
    while words and (match := _ASSIGNMENT.fullmatch(words[0])) is not None:
        name, is_added, value = match[1], match[2] == "+=", match[3]
        if value.startswith("("):
            found = [
                replace(w, doubt=w.doubt or doubt) for w in _expand_all(script, split_array(value[1:-1]))
            ]
            script.arrays[name] = (script.arrays.get(name, []) if is_added else []) + found
        else:
            found = _expand(script, value)
            used = tuple(name for w in found for name in w.defaults)
            word = Word(
                " ".join(w.text for w in found), next((w.doubt for w in found if w.doubt), doubt), used
            )
            if is_added and name in script.variables:
                word = replace(word, text=script.variables[name].text + word.text)
            script.variables[name] = word
            if is_export:
                script.exported[name] = word
        words = words[1:]
    if is_export:
        script.exported |= {w: script.variables[w] for w in words if w in script.variables}
        return
    if words:
        script.commands.append([replace(w, doubt=w.doubt or doubt) for w in _expand_all(script, words)])


def _expand_all(script: Script, words: list[str]) -> list[Word]:
    return [word for raw in words for word in _expand(script, raw)]


def _expand(script: Script, raw: str) -> list[Word]:
    """A raw word as words: quotes removed, variables put in; unquoted values split at blanks."""
    array = re.fullmatch(r'"?\$\{(\w+)\[[@*]\]\}"?', raw)
    if array is not None:
        name = array[1]
        if name in script.arrays and raw.startswith('"'):
            return list(script.arrays[name])
        if name in script.arrays:  # unquoted elements split at blanks
            return [replace(w, text=part) for w in script.arrays[name] for part in w.text.split() or [""]]
        if name in script.variables:
            return [script.variables[name]]
        return [Word("", f"the array {name} is not set in the file")]
    text, doubt, quote, at = "", "", "", 0
    used: tuple[str, ...] = ()
    splits: list[str] = []
    has_quotes = False
    while at < len(raw):
        char = raw[at]
        if char == "'" and quote != '"':
            end = raw.find("'", at + 1)
            end = len(raw) if end < 0 else end
            text += raw[at + 1 : end]
            has_quotes, at = True, end + 1
        elif char == '"':
            quote = "" if quote else '"'
            has_quotes, at = True, at + 1
        elif char == "\\":
            text += raw[at + 1 : at + 2]
            at += 2
        elif char in "$`":
            found, at = _variable(script, raw, at)
            value, doubt, used = found.text, doubt or found.doubt, (*used, *found.defaults)
            if quote or not re.search(r"\s", value):
                text += value
            else:
                first, *rest = value.split()
                splits = [*splits, text + first, *rest[:-1]]
                text = rest[-1] if rest else ""
        else:
            text += char
            at += 1
    if not text and not splits and not has_quotes and not doubt:
        return []
    return [Word(part, doubt, used) for part in [*splits, text]]


def _variable(script: Script, raw: str, at: int) -> tuple[Word, int]:
    """(value, next place) of an expansion that starts at ``at``."""
    if raw[at] == "`":
        end = raw.find("`", at + 1)
        return Word("", "the output of a command"), (len(raw) if end < 0 else end + 1)
    if raw.startswith("$((", at):
        end = raw.find("))", at)
        return _arithmetic(script, raw[at + 3 : end]), end + 2
    if raw.startswith("$(", at):
        return Word("", "the output of a command"), _matching(raw, at + 1, "()") + 1
    if raw.startswith("${", at):
        end = _matching(raw, at + 1, "{}")
        return _braced(script, raw[at + 2 : end]), end + 1
    match = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]").match(raw, at + 1)
    if match is None:
        return Word("$"), at + 1
    return _value(script, match[0]), match.end()


def _matching(raw: str, at: int, pair: str) -> int:
    depth = 0
    for place in range(at, len(raw)):
        depth += (raw[place] == pair[0]) - (raw[place] == pair[1])
        if depth == 0:
            return place
    return len(raw)


def _braced(script: Script, inside: str) -> Word:
    match = re.fullmatch(r"(\w+)(?:(:?[-=?+])(.*))?", inside, re.DOTALL)
    if match is None:
        return Word("", f"the expansion ${{{inside}}}")
    name, action, rest = match[1], match[2] or "", match[3] or ""
    if name not in script.variables and action in ("-", ":-", "=", ":="):
        found = _expand(script, rest)
        value = " ".join(word.text for word in found)
        doubt = next((word.doubt for word in found if word.doubt), "")
        return Word(value, doubt, (f"{name}={value}",))
    return _value(script, name)


def _value(script: Script, name: str) -> Word:
    if name in script.variables:
        return script.variables[name]
    if script.arrays.get(name):
        return script.arrays[name][0]
    return Word("", f"${name} is not set in the file")


def _arithmetic(script: Script, text: str) -> Word:
    parts: list[Word] = []

    def put(match: re.Match[str]) -> str:
        parts.append(_value(script, match[1]))
        return parts[-1].text or "0"

    plain = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", put, text)
    doubt = next((part.doubt for part in parts if part.doubt), "")
    used = tuple(name for part in parts for name in part.defaults)
    try:
        return Word(str(_number(ast.parse(plain.strip(), mode="eval").body)), doubt, used)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return Word("", doubt or f"the arithmetic $(({text}))")


def _number(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return int(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return int(_OPERATORS[type(node.op)](_number(node.left), _number(node.right)))
    raise ValueError("not plain arithmetic")
