"""The numeric type of the cost formulas: a float or an array of them, one entry per candidate."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
# A formula is polymorphic in this type: the same expression on one candidate or on all of them.
Number: TypeAlias = Any


def ceil_div(numerator: Number, denominator: Number) -> Number:
    """Integer division rounding up, for non-negative numbers or arrays of them."""
    return -(-numerator // denominator)
