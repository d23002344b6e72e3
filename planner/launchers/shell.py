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
    depth = 0
    for line, words in _statements(text):
        first = words[0] if words else ""
        if first in OPENING:
            depth += 1
            continue
        if first in CLOSING:
            depth = max(0, depth - 1)
            continue
        doubt = f"set inside a condition (line {line})" if depth else ""
        _statement(script, words, doubt)
    return script


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
            found = [replace(w, doubt=w.doubt or doubt) for w in _expand_all(script, _split(value[1:-1]))]
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


def _statements(text: str) -> list[tuple[int, list[str]]]:
    """(line, raw words) of every statement; quotes stay in the words, continuations are joined."""
    found: list[tuple[int, list[str]]] = []
    words: list[str] = []
    word, quote, depth, line, at = "", "", 0, 1, 0
    is_open = False

    def close_word() -> None:
        nonlocal word, is_open
        if word or is_open:
            words.append(word)
        word, is_open = "", False

    while at < len(text):
        char = text[at]
        after = text[at + 1 : at + 2]
        line += char == "\n"
        if quote:
            word += char
            if char == "\\" and quote == '"':
                word += after
                at += 1
            elif char == quote:
                quote = ""
        elif char == "\\" and after == "\n":
            line += 1
            at += 1
            if depth:
                word += " "
            else:
                close_word()
        elif char == "\\":
            word += char + after
            at += 1
        elif char in "'\"":
            quote, is_open = char, True
            word += char
        elif char == "#" and (not word or (depth and word[-1] in " \n(")):
            while at + 1 < len(text) and text[at + 1] != "\n":
                at += 1
        elif char in "({":
            depth += bool(word) or depth > 0
            word += char
        elif char in ")}" and depth:
            depth -= 1
            word += char
        elif depth:
            word += char
        elif char in " \t":
            close_word()
        elif char in "\n;|&":
            close_word()
            if words:
                found.append((line - (char == "\n"), words))
            words = []
        else:
            word += char
        at += 1
    close_word()
    return [*found, (line, words)] if words else found


def _split(text: str) -> list[str]:
    """Raw words of an array's inside: line ends separate like blanks."""
    return [word for _, words in _statements(text.replace("\n", " ")) for word in words]


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
