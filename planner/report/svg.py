"""Plots as inline SVG: scales, axes and marks. Colours come from the page's style sheet by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from planner.units import significant

TICK_ROOM_PIXELS = 34.0


@dataclass(frozen=True)
class Scale:
    """Data to pixels: ``low`` lands on ``start``, ``high`` on ``end``; logarithmic when ``is_log``."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._of(self.low), self._of(self.high)
        return self.start + (self._of(value) - low) / (high - low) * (self.end - self.start)

    def _of(self, value: float) -> float:
        return math.log(value) if self.is_log else value

    def ticks(self) -> list[float]:
        """Round values inside the scale, few enough to be labelled."""
        room = max(2, int(abs(self.end - self.start) / TICK_ROOM_PIXELS))
        if self.is_log:
            return _log_ticks(self.low, self.high, room)
        return _linear_ticks(self.low, self.high, room)


def _log_ticks(low: float, high: float, room: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(found) <= room:
            break
    return found[:: math.ceil(len(found) / room)] if len(found) > room else found


def _linear_ticks(low: float, high: float, room: int) -> list[float]:
    raw = (high - low) / room
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(s * magnitude for s in (1.0, 2.0, 2.5, 5.0, 10.0) if s * magnitude >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def padded_log_range(values: Iterable[float], room: float = 1.25) -> tuple[float, float]:
    """A range around positive values, a factor ``room`` wider at both ends, at least 2 ``room`` - 1."""
    known = list(values)
    low, high = min(known), max(known)
    middle, half = math.sqrt(low * high), max(math.sqrt(high / low) * room, 2.0 * room - 1.0)
    return middle / half, middle * half


def short_number(value: float) -> str:
    """A tick's label: 0.1, 2, 50, 4k, 1M."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}" if abs(value) >= 1e-3 or value == 0 else significant(value)


def svg(width: float, height: float, body: Iterable[str], label: str) -> str:
    """A picture that fills its column, with a text for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(body)}</svg>"
    )


def text(x: float, y: float, content: str, *, css: str = "tick", anchor: str = "middle") -> str:
    """A label; ``anchor`` is start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def rect(x: float, y: float, width: float, height: float, css: str, title: str = "") -> str:
    """A box with a tooltip."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    size = f'x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.0):.2f}" height="{height:.2f}"'
    return f'<rect {size} class="{css}">{inner}</rect>'


def dot(x: float, y: float, css: str, title: str, radius: float = 3.2) -> str:
    """A point with a tooltip."""
    inner = f"<title>{escape(title)}</title>"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{css}">{inner}</circle>'


def polygon(points: Sequence[tuple[float, float]], css: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon points="{path}" class="{css}"/>'


def axes(
    x: Scale,
    y: Scale,
    x_title: str,
    y_title: str,
    *,
    x_ticks: Sequence[float] | None = None,
    y_ticks: Sequence[float] | None = None,
    x_label: Callable[[float], str] = short_number,
    y_label: Callable[[float], str] = short_number,
) -> list[str]:
    """Grid lines, tick labels and titles; y.start is the bottom."""
    parts = []
    for value in x.ticks() if x_ticks is None else x_ticks:
        at = x(value)
        parts.append(line(at, y.start, at, y.end, "grid"))
        parts.append(text(at, y.start + 14, x_label(value)))
    for value in y.ticks() if y_ticks is None else y_ticks:
        at = y(value)
        parts.append(line(x.start, at, x.end, at, "grid"))
        parts.append(text(x.start - 6, at + 3.5, y_label(value), anchor="end"))
    parts.append(text((x.start + x.end) / 2, y.start + 30, x_title, css="axis"))
    middle = (y.start + y.end) / 2
    parts.append(
        f'<text x="12" y="{middle:.1f}" class="axis" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle:.1f})">{escape(y_title)}</text>'
    )
    return parts
