"""Reading and checking whole documents: JSON or YAML in, pydantic models or InputError out.

Every message names the file, the place in it (a line, or a JSON pointer as in RFC 6901), the rule, and
what would be accepted.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from planner.errors import InputError, nearest_names
from planner.units import MIB, format_bytes

Spec = TypeVar("Spec", bound=BaseModel)

MAX_DOCUMENT_BYTES = int(16 * MIB)
YAML_SUFFIXES = (".yaml", ".yml")
DOCUMENT_SUFFIXES = (".json", *YAML_SUFFIXES)


class _Duplicate(ValueError):
    """A key written twice in one object."""


class _NotFinite(ValueError):
    """A number that is NaN, infinite or too large for a double."""


def read_document(path: str | Path) -> dict[str, Any]:
    """The object a .json, .yaml or .yml file holds; other suffixes are read as JSON.

    Raises InputError when the file is missing, a directory, empty, over 16 MiB, not UTF-8, not valid
    JSON or YAML, repeats a key, holds NaN or an infinity, or is not an object at the top.
    """
    file = str(path)
    text = read_text(Path(path), file)
    value = parse_yaml(text, file) if file.lower().endswith(YAML_SUFFIXES) else _parse_json(text, file)
    if not isinstance(value, dict):
        raise InputError(
            f"the top level must be an object, not {_kind(value)}",
            file=file,
            allowed="object",
            hint='write key-value pairs, for example {"schema_version": 1, ...}',
        )
    _reject_odd_values(value, file)
    return value


def validate(spec: type[Spec], document: dict[str, Any], file: str) -> Spec:
    """``document`` as a ``spec``. Raises InputError with a JSON pointer for the first broken rule."""
    try:
        return spec.model_validate(document)
    except ValidationError as error:
        raise _as_input_error(error, spec, document, file) from None


def read_text(path: Path, file: str) -> str:
    """A text file's content. Raises InputError when it is missing, a directory, empty, large or not UTF-8."""
    try:
        if path.is_dir():
            raise InputError("is a directory, not a file", file=file, hint="give a file inside it")
        size = path.stat().st_size
        if size > MAX_DOCUMENT_BYTES:
            _too_large(file, size)
        with path.open("rb") as stream:
            data = stream.read(MAX_DOCUMENT_BYTES + 1)
    except FileNotFoundError:
        raise InputError("no such file", file=file, hint="check the path and the working folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read: {getattr(error, 'strerror', None) or error}", file=file) from None
    if len(data) > MAX_DOCUMENT_BYTES:
        _too_large(file, len(data))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start} (line {line})",
            file=file,
            hint="save the file as UTF-8",
        ) from None
    if not text.strip():
        raise InputError("the file is empty", file=file, hint='write an object, at least {"name": ...}')
    return text


def _too_large(file: str, size: int) -> NoReturn:
    raise InputError(
        f"{format_bytes(size)} is more than a description may have ({format_bytes(MAX_DOCUMENT_BYTES)})",
        file=file,
        allowed=MAX_DOCUMENT_BYTES,
        hint="give the description (config.json), not the weights",
    )


def _parse_json(text: str, file: str) -> Any:
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite_float
        )
    except json.JSONDecodeError as error:
        raise InputError(
            f"not valid JSON: line {error.lineno}, column {error.colno}: {_lower_first(error.msg)}",
            file=file,
            hint=_json_hint(text, error.pos),
            line=error.lineno,
            column=error.colno,
        ) from None
    except _Duplicate as error:
        _duplicate(str(error), text, file)
    except RecursionError:
        raise InputError("nested too deeply to read", file=file) from None
    except _NotFinite as error:
        _not_finite(str(error), text, file)
    except ValueError as error:
        raise InputError(f"not a usable number: {error}", file=file, hint="write a finite number") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Duplicate(key)
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise _NotFinite(name)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotFinite(text)
    return value


def _json_hint(text: str, position: int) -> str:
    before, rest = text[:position].rstrip(), text[position : position + 1]
    if rest in ("}", "]") or before.endswith(","):
        return "JSON allows no comma after the last item"
    if rest == "'":
        return "JSON strings take double quotes"
    return "check the commas, quotes and brackets just before this place"


def _duplicate(key: str, text: str, file: str) -> NoReturn:
    lines = _lines_with(rf"[\"']?{re.escape(key)}[\"']?\s*:", text)
    where = f" (lines with this key: {', '.join(map(str, lines))})" if lines else ""
    raise InputError(
        f"key {key!r} is written twice in one object{where}", file=file, hint="keep one of them", key=key
    )


def _not_finite(number: str, text: str, file: str) -> NoReturn:
    lines = _lines_with(rf"(?<![\w\"]){re.escape(number)}(?![\w\"])", text)
    raise InputError(
        f"{'line ' + str(lines[0]) + ': ' if lines else ''}{number[:40]} is not a finite number",
        file=file,
        hint="write a finite number, or null where the format allows it",
        line=lines[0] if lines else None,
    )


def _lines_with(pattern: str, text: str) -> list[int]:
    """Numbers of the first eight lines that match ``pattern``."""
    found = re.compile(pattern)
    return [number for number, line in enumerate(text.splitlines(), 1) if found.search(line)][:8]


def parse_yaml(text: str, file: str) -> Any:
    """YAML as plain values; ``file`` names it. Raises InputError for broken YAML and repeated keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader that refuses repeated keys."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            written = [k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode)]
            for key in written:
                if key != "<<" and written.count(key) > 1:
                    raise _Duplicate(key)
            return dict(super().construct_mapping(node, deep))

    try:
        return yaml.load(text, Loader=Loader)
    except _Duplicate as error:
        _duplicate(str(error), text, file)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(
            f"not valid YAML: {place}{what}",
            file=file,
            hint="check the indentation and quotes",
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
        ) from None
    except RecursionError:
        raise InputError("nested too deeply to read", file=file) from None
    except ValueError as error:
        raise InputError(f"not a usable value: {error}", file=file) from None


def _reject_odd_values(document: dict[str, Any], file: str) -> None:
    """Refuse NaN, infinities and keys that are not text, wherever they are (YAML can hold all three)."""
    waiting: list[tuple[str, Any]] = [("", document)]
    seen: set[int] = set()
    while waiting:
        pointer, value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(
                f"{value} is not a number", file=file, pointer=pointer, hint="write a finite number"
            )
        if not isinstance(value, (dict, list)) or id(value) in seen:
            continue
        seen.add(id(value))
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(value, dict) and not isinstance(key, str):
                raise InputError(
                    f"key {key!r} must be text", file=file, pointer=pointer, hint=f'quote it: "{key}"'
                )
            waiting.append((f"{pointer}/{_escape(key)}", item))


def _as_input_error(error: ValidationError, spec: type[BaseModel], document: Any, file: str) -> InputError:
    problems = error.errors(include_url=False)
    first = problems[0]
    pointer, value = _locate(document, first["loc"], first["type"])
    allowed: Any = None
    hint, key = "", str(first["loc"][-1]) if first["loc"] else ""
    context = first.get("ctx", {})
    if first["type"] == "missing":
        what, hint = f"{key!r} is required but missing", f"add {key!r}"
    elif first["type"] == "extra_forbidden":
        near = nearest_names(key, _known_keys(spec))
        what = f"unknown key {key!r}"
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "remove it"
    else:
        allowed = context.get("expected") or context.get("expected_tags")
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            what = f"{_lower_first(what)}, not {reprlib.repr(value)}"
            hint = f"write {allowed}" if allowed else _limit_hint(context)
    if len(problems) > 1:
        what += f" (and {len(problems) - 1} more)"
    return InputError(what, file=file, pointer=pointer, allowed=allowed, hint=hint)


def _limit_hint(context: dict[str, Any]) -> str:
    words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    return "; ".join(f"use {word} {context[key]}" for key, word in words.items() if key in context)


def _locate(document: Any, loc: tuple[int | str, ...], kind: str) -> tuple[str, Any]:
    """JSON pointer of ``loc`` and the value there; parts naming a union's branch are not in the document."""
    pointer, node = "", document
    for index, part in enumerate(loc):
        if _holds(node, part):
            node = node[part]
        elif not (kind == "missing" and index + 1 == len(loc)):
            continue
        pointer += f"/{_escape(part)}"
    return pointer, node


def _holds(node: Any, part: int | str) -> bool:
    if isinstance(node, list):
        return isinstance(part, int) and part < len(node)
    return isinstance(node, dict) and part in node


def _known_keys(spec: type[BaseModel]) -> set[str]:
    schema = spec.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return {key for part in parts for key in part.get("properties", {})}


def _escape(part: Any) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
