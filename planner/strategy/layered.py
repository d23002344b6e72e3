"""Per-layer strategies: what one layer, and what the embedding and head, may choose inside a stage.

A stage's ranks are split tp x sp x dp for every layer on its own. ``sp`` is context parallelism by
all-to-all (Ulysses, arXiv 2309.14509): plan files and launchers call it cp. Rank order inside a stage: tp or
sp varies fastest, then dp.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.strategy.decision import RECOMPUTE_NONE, RECOMPUTES, SHARDINGS


@dataclass(frozen=True, order=True)
class LayerChoice:
    """One layer's strategy; ``sharding`` and ``recompute`` are codes of strategy.decision."""

    tp: int
    sp: int
    dp: int
    sharding: int
    recompute: int = RECOMPUTE_NONE

    @property
    def split(self) -> int:
        """Ranks over which one sequence's activations are spread between layers."""
        return self.tp * self.sp

    @property
    def sharding_ranks(self) -> int:
        """Ranks that hold the same weights: the group gradients are reduced over."""
        return self.dp * self.sp

    def label(self) -> str:
        """tp2 dp4 gradients recompute:full, without what is off."""
        parts = [f"tp{self.tp}"] if self.tp > 1 or self.sp == 1 else []
        if self.sp > 1:
            parts.append(f"sp{self.sp}")
        parts += [f"dp{self.dp}", SHARDINGS[self.sharding]]
        if self.recompute != RECOMPUTE_NONE:
            parts.append(f"recompute:{RECOMPUTES[self.recompute]}")
        return " ".join(parts)


@dataclass(frozen=True)
class LayeredDecision:
    """Every choice of a plan with per-layer strategies.

    ``stages[i]`` is the (first, end) range of layers of pipeline stage i, ``choices[l]`` the strategy of
    layer l, ``ends`` the strategy of embedding and head (its recompute is none). Schedule 1F1B.
    """

    pp: int
    microbatches: int
    stages: tuple[tuple[int, int], ...]
    choices: tuple[LayerChoice, ...]
    ends: LayerChoice
