"""What to expect of an installation nobody measured, from those that were.

Legend: x_i the logarithm of a constant of the fitted installation i, g_i its GPU generation, S_i its stacks.
An installation's x is the sum of four independent parts: one common to all, one of its generation, one of
its stack and its own, taken as equally uncertain around 0 (the prior). Between two installations that makes
the covariance

    K(i, j) = 1 + [g_i = g_j] + [S_i and S_j overlap] + [i = j]

and the best linear prediction of a new one is k^T K^-1 x (kriging; Robinson 1991, "That BLUP is a good
thing"). One installation of the same stack pulls it part of the way, many that agree all of it. Ignored:
how well each x_i is known, and that parts may differ in spread, which some fifteen installations cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Installation:
    """A fitted installation: its GPU generation, the stacks it ran, its constant (a factor above 0)."""

    generation: str
    stacks: Collection[str]
    value: float


def expected_value(known: Mapping[str, Installation], generation: str, stacks: Collection[str]) -> float:
    """The constant to expect of an installation of ``generation`` running ``stacks``; 1 if none is known."""
    if not known:
        return 1.0
    sites = list(known.values())
    covariance = np.array([[_alike(a, b.generation, b.stacks) for b in sites] for a in sites])
    covariance += np.eye(len(sites))
    towards = np.array([_alike(a, generation, stacks) for a in sites])
    logarithms = np.array([math.log(site.value) for site in sites])
    return math.exp(float(towards @ np.linalg.solve(covariance, logarithms)))


def _alike(one: Installation, generation: str, stacks: Collection[str]) -> float:
    """The covariance of two installations, their own parts aside."""
    return 1.0 + (one.generation == generation) + bool(set(one.stacks) & set(stacks))
