"""Random complete decisions of one schedule, as arrays for ``price_many`` and one by one for ``price``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.cost.layer import cost_table
from planner.cost.many import Many
from planner.cost.model import CostModel
from planner.strategy.candidates import Candidates
from planner.strategy.decision import SCHEDULES, Decision, Degrees


def random_many(
    model: CostModel, shape: tuple[str, int, int, int], meshes: Sequence[tuple[int, int, int]], count: int
) -> Many:
    """``count`` random stage splits, recompute modes, meshes (tp, cp, ep) and shardings.

    shape: schedule, pp, virtual stages, microbatches.
    """
    schedule, pp, v, m = shape
    random = np.random.default_rng(count)
    world, batch = model.problem.world_size, model.problem.workload.global_batch
    rows = []
    for tp, cp, ep in meshes:
        dp = world // (tp * cp * pp)
        for sharding in range(2 if schedule.startswith("zb") else 4):
            rows.append(
                Candidates.single(
                    tp=tp,
                    cp=cp,
                    dp=dp,
                    pp=pp,
                    ep=ep,
                    microbatch_size=batch // (dp * m),
                    virtual_stages=v,
                    schedule=SCHEDULES.index(schedule),
                    sharding=sharding,
                    sequence_parallel=int(tp > 1),
                )
            )
    candidates = Candidates.concatenate(rows)
    table = cost_table(model.problem, model.chain, candidates, model.device, model.stack)
    blocks = model.chain.num_blocks
    cuts = np.sort(np.argsort(random.random((count, blocks - 1)), axis=1)[:, : pp * v - 1] + 1, axis=1)
    ends = np.hstack([cuts, np.full((count, 1), blocks)]).T.copy()
    modes = random.integers(0, 3, (blocks, count))
    return Many(table, random.integers(0, len(candidates), count), schedule, v, ends, modes)


def decision_at(many: Many, index: int, batch: int) -> Decision:
    """One of them as a decision; ``batch``: global."""
    c, row, ends = many.table.candidates, many.rows[index], many.ends[:, index].tolist()
    degrees = Degrees(*(int(getattr(c, name)[row]) for name in ("dp", "tp", "pp", "cp", "ep", "expert_tp")))
    return Decision(
        degrees=degrees,
        sequence_parallel=bool(c.sequence_parallel[row]) and degrees.tp > 1,
        sharding=int(c.sharding[row]),
        sharding_group=0,
        schedule=many.schedule,
        virtual_stages=many.virtual_stages,
        microbatch_size=int(c.microbatch_size[row]),
        microbatches=batch // (degrees.dp * int(c.microbatch_size[row])),
        chunks=tuple(zip([0, *ends[:-1]], ends, strict=True)),
        recompute=tuple(many.modes[:, index].tolist()),
    )
