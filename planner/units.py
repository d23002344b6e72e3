"""Units: the only file that holds 1024 or 1e9.

Inside the project everything is bytes, seconds, FLOP, FLOP/s, bytes/s and dollars. Files carry the
datasheet's unit in the key. Conversion happens once, at the border, with the constants below; people
see three significant digits through the ``format_*`` functions and nothing else formats numbers.
"""

from __future__ import annotations

import math

KIB = 1024.0
MIB = 1024.0**2
GIB = 1024.0**3
MEGA = 1e6
GIGA = 1e9
TERA = 1e12
MILLI = 1e-3
MICRO = 1e-6
SECONDS_PER_HOUR = 3600.0
SECONDS_PER_DAY = 86400.0
BITS_PER_BYTE = 8.0


def significant(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, never in scientific notation below 1e7."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    magnitude = math.floor(math.log10(abs(value)))
    decimals = digits - 1 - magnitude
    rounded = round(value, decimals)
    if rounded != 0 and math.floor(math.log10(abs(rounded))) > magnitude:
        decimals -= 1
    return f"{rounded:,.{max(0, decimals)}f}"


def format_bytes(value: float) -> str:
    """Bytes as GiB (or MiB / KiB when small), three significant digits."""
    size = abs(value)
    if size >= GIB / 10 or size == 0:
        return f"{significant(value / GIB)} GiB"
    if size >= MIB / 10:
        return f"{significant(value / MIB)} MiB"
    return f"{significant(value / KIB)} KiB"


def format_seconds(value: float) -> str:
    """Seconds as days, hours, s, ms or us, three significant digits."""
    size = abs(value)
    if size >= 2 * SECONDS_PER_DAY:
        return f"{significant(value / SECONDS_PER_DAY)} days"
    if size >= 2 * SECONDS_PER_HOUR:
        return f"{significant(value / SECONDS_PER_HOUR)} h"
    if size >= 1 or size == 0:
        return f"{significant(value)} s"
    if size >= MILLI:
        return f"{significant(value / MILLI)} ms"
    return f"{significant(value / MICRO)} us"


def format_rate(value: float) -> str:
    """Bytes per second as GB/s (decimal, as datasheets print), three significant digits."""
    return f"{significant(value / GIGA)} GB/s"


def format_count(value: float) -> str:
    """A large count as T / B / M / thousands, three significant digits."""
    size = abs(value)
    for scale, letter in ((TERA, "T"), (GIGA, "B"), (MEGA, "M")):
        if size >= scale:
            return f"{significant(value / scale)}{letter}"
    return significant(value) if size >= 1 or size == 0 else f"{value:.3g}"


def format_share(value: float) -> str:
    """A fraction as a percentage, three significant digits at most one decimal."""
    return f"{value * 100:.1f} %"
