"""Typed, strict access to the keys of one ``config.json``.

Every value a family reads goes through :class:`Config`, which checks its type and range, remembers that
the key was used, and raises an InputError that names the file, the JSON pointer, the rule and a value
that would work. Sizes are elements, rates are fractions between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from planner.errors import InputError

MAX_LAYERS = 10_000
MAX_SIZE = 10_000_000
MAX_TOKENS = 100_000_000


def escape_pointer(key: str) -> str:
    """``key`` as one reference token of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def describe(value: Any) -> str:
    """``value`` for an error message: its JSON spelling, shortened to 60 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Config:
    """The keys of one model part, where they stand in the file, and what was said about them.

    ``base`` is the JSON pointer of the part inside the file ("" or "/text_config"); ``inherited`` names
    keys that the part takes over from the top of the file. ``warnings`` is shared with the caller;
    families append sentences to it.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        *,
        file: str,
        model_type: str,
        name: str,
        base: str,
        warnings: list[str],
        inherited: frozenset[str] = frozenset(),
    ) -> None:
        self.data = data
        self.file = file
        self.model_type = model_type
        self.name = name
        self.base = base
        self.warnings = warnings
        self.inherited = inherited
        self.used: set[str] = set()

    def pointer(self, key: str, item: int | None = None) -> str:
        """The JSON pointer of ``key``, or of one item of its list."""
        base = "" if key in self.inherited else self.base
        return f"{base}/{escape_pointer(key)}" + ("" if item is None else f"/{item}")

    def error(
        self, key: str, message: str, *, hint: str = "", allowed: Any = None, item: int | None = None
    ) -> InputError:
        """An InputError that points at ``key`` or at one item of its list."""
        return InputError(
            f"{message} ({self.model_type} configuration)",
            file=self.file,
            pointer=self.pointer(key, item),
            hint=hint,
            allowed=allowed,
        )

    def warn(self, sentence: str) -> None:
        """Add one warning in words."""
        self.warnings.append(sentence)

    def get(self, key: str) -> Any:
        """The raw value; null and absent both give None. Marks the key as used."""
        self.used.add(key)
        return self.data.get(key)

    def has(self, key: str) -> bool:
        """Whether the key is present with a value that is not null."""
        return self.data.get(key) is not None

    def take_defaults(self, defaults: Mapping[str, int]) -> None:
        """Absent or null keys become the library's defaults, where released files leave them out.

        One warning names every key and number taken.
        """
        taken = {key: value for key, value in defaults.items() if not self.has(key)}
        if taken:
            said = ", ".join(f"{key} = {value}" for key, value in taken.items())
            self.warn(f"{self.base or '/'}: {self.model_type} defaults taken for absent keys: {said}")
            self.data = {**self.data, **taken}

    def missing(self, keys: Sequence[str], example: int | str) -> InputError:
        """The error for a required value that is absent or null."""
        key = keys[0]
        state = "is null" if key in self.data else "is missing"
        other = f" (also read as {', '.join(keys[1:])})" if len(keys) > 1 else ""
        return self.error(
            key,
            f"required key {key!r}{other} {state}",
            hint=f'write for example "{key}": {example}',
        )

    def checked_count(self, key: str, value: Any, *, least: int, most: int, example: int) -> int:
        """``value`` as a whole number in [least, most]; InputError otherwise."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(
                key,
                f"{key!r} must be a whole number, not {describe(value)}",
                hint=f'write for example "{key}": {example}',
            )
        if not least <= value <= most:
            raise self.error(
                key,
                f"{key!r} must be between {least} and {most}, not {value}",
                hint=f'write for example "{key}": {example}',
                allowed=[least, most],
            )
        return value

    def optional_count(
        self, *keys: str, least: int = 1, most: int = MAX_SIZE, example: int = 1
    ) -> int | None:
        """A whole number under the first of ``keys`` present, None when absent or null.

        Several keys are spellings of one fact; when two are present they must agree.
        """
        found: dict[str, int] = {}
        for key in keys:
            value = self.get(key)
            if value is not None:
                found[key] = self.checked_count(key, value, least=least, most=most, example=example)
        if len(set(found.values())) > 1:
            raise self.error(
                next(iter(found)),
                f"{' and '.join(found)} mean the same and must agree, not {sorted(found.values())}",
                hint="keep one of them",
            )
        return next(iter(found.values()), None)

    def count(self, *keys: str, example: int, least: int = 1, most: int = MAX_SIZE) -> int:
        """A required whole number (see :meth:`optional_count`)."""
        value = self.optional_count(*keys, least=least, most=most, example=example)
        if value is None:
            raise self.missing(keys, example)
        return value

    def layers(self, *keys: str, example: int) -> int:
        """A required number of layers."""
        return self.count(*keys, example=example, most=MAX_LAYERS)

    def flag(self, key: str, default: bool) -> bool:
        """A true/false value; ``default`` when absent or null."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(
                key, f"{key!r} must be true or false, not {describe(value)}", hint=f'write "{key}": true'
            )
        return value

    def rate(self, key: str, default: float) -> float:
        """A dropout rate in [0, 1]; ``default`` when absent or null."""
        value = self.get(key)
        if value is None:
            return default
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= 1:
            raise self.error(
                key,
                f"{key!r} must be a rate between 0 and 1, not {describe(value)}",
                hint=f'write "{key}": 0.1',
            )
        return float(value)

    def any_dropout(self, **defaults: float) -> bool:
        """Whether any of the named dropout rates is above 0; values are the families' defaults."""
        rates = [self.rate(key, default) for key, default in defaults.items()]
        return any(rate > 0 for rate in rates)

    def text(self, key: str, default: str) -> str:
        """A string; ``default`` when absent or null."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(
                key, f"{key!r} must be a string, not {describe(value)}", hint=f'write "{default}"'
            )
        return value

    def listed(self, key: str) -> list[Any] | None:
        """A list; None when absent or null."""
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            raise self.error(key, f"{key!r} must be a list, not {describe(value)}", hint=f'write "{key}": []')
        return value
