"""Integer program for plans whose memory binds: sharding and recompute chosen layer by layer.

The dynamic program gives every layer the plan's own sharding. Where memory binds, some layers are better
sharded over the data ranks (gathered when needed) than recomputed; OSDP (arXiv 2305.09940) makes that choice
per operator, here it is made per layer together with its recompute mode, on the stages the dynamic program
found. PuLP lives in this file only.

Sets: ranks i, groups g of equal layers on rank i (kind, microbatches in flight, n_g layers), options
o = (sharding, recompute mode).

Variables
    x[g, o]   integer, layers of group g with option o
    u[i, s]   binary, rank i has a layer with sharding s;  w[i, r]  binary, with recompute mode r
    a[i], b[i] continuous, bytes of gathered layers and of the recomputed working set on rank i
    T         continuous, seconds of the pipeline part of the step

Objective: minimise T.

Constraints
    1. every layer has one option          sum_o x[g, o] = n_g                                   (_assignment)
    2. options switch their buffers on     x[g, o] <= n_g u[i, s],  x[g, o] <= n_g w[i, r]       (_switches)
    3. buffers                             a[i] >= gathered[g, s] u[i, s],  b[i] >= working[g, r] w[i, r]
    4. memory                              static + in-flight activations + a + b <= limit        (_memory)
    5. pipeline                            T >= S_i + m t_i, S_i the fill of the ranks before i   (_pipeline)

The result is priced by the same function as every decision and is used only when that is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from planner.cost.layer import cost_table
from planner.cost.offload import usable_bytes
from planner.cost.row import CandidateRow, KindCost, candidate_row
from planner.cost.stage import StageModel
from planner.cost.step import CostModel, Prediction, decision_candidates, price, rank_items
from planner.search.recompute import MODES
from planner.strategy.decision import (
    RECOMPUTE_NONE,
    SCHEDULES,
    SHARDING_PARAMETERS,
    Decision,
    rank_of_stage,
)
from planner.units import GIB, MILLI

TIME_LIMIT_SECONDS = 5.0
RELATIVE_GAP = 1e-4
MIN_GAIN = 1e-6


@dataclass(frozen=True)
class Refinement:
    """What the integer program gave: the decision and prediction when better, and the solver's own data."""

    decision: Decision | None
    prediction: Prediction | None
    solver: dict[str, object]


@dataclass(frozen=True)
class _Group:
    """Equal layers on one rank and chunk."""

    rank: int
    chunk: int
    kind: int
    count: int
    in_flight: int
    is_block: bool


def is_memory_bound(decision: Decision) -> bool:
    """Whether the plan pays for memory: it recomputes, or gathers sharded parameters."""
    return any(decision.recompute) or decision.sharding == SHARDING_PARAMETERS


def refine(
    model: CostModel, decision: Decision, current_seconds: float, offered: tuple[int, ...] = MODES
) -> Refinement:
    """Choose sharding and recompute (none or an ``offered`` mode) per layer on the decision's stages.

    A missing, failing or slow solver costs the refinement, never the answer: its status says so.
    """
    model = model.placed(decision.offload)
    try:
        import pulp
    except ImportError:
        return Refinement(None, None, {"name": "pulp", "status": "not installed"})
    rows = _rows(model, decision)
    if len(rows) < 2:
        return Refinement(None, None, {"name": "none", "status": "nothing to choose: one sharding possible"})
    program = _Program(pulp, model, decision, rows, offered)
    solver = program.solve()
    if solver["status"] != "optimal" and solver["status"] != "feasible":
        return Refinement(None, None, solver)
    refined = program.decision()
    prediction = price(model, refined)
    is_better = prediction.step_seconds < current_seconds * (1.0 - MIN_GAIN)
    fits = prediction.peak_memory_bytes <= model.problem.memory_limit_bytes * (1.0 + 1e-9)
    fits &= prediction.host_bytes <= usable_bytes(model.problem.cluster.host)
    solver["step_seconds"] = prediction.step_seconds
    solver["is_used"] = is_better and fits
    if not (is_better and fits):
        return Refinement(None, None, solver)
    return Refinement(refined, prediction, solver)


def _rows(model: CostModel, decision: Decision) -> dict[int, CandidateRow]:
    """Cost rows for the plan's own sharding and for sharded parameters."""
    codes = [decision.sharding]
    data_ranks = decision.degrees.dp * decision.degrees.cp
    if decision.sharding != SHARDING_PARAMETERS and data_ranks > 1:
        codes.append(SHARDING_PARAMETERS)
    candidates = decision_candidates(decision, codes)
    table = cost_table(model.problem, model.chain, candidates, model.device, model.stack)
    schedule = SCHEDULES.index(decision.schedule)
    return {
        code: candidate_row(model.problem, table, model.stack, i, schedule, decision.virtual_stages)
        for i, code in enumerate(codes)
    }


class _Program:
    """The integer program of one decision."""

    def __init__(
        self,
        pulp: Any,
        model: CostModel,
        decision: Decision,
        rows: dict[int, CandidateRow],
        offered: tuple[int, ...],
    ) -> None:
        self.pulp, self.model, self.old, self.rows = pulp, model, decision, rows
        self.stages: StageModel = model.stage_model(rows)
        self.offered = offered
        self.options = [(s, r) for s in rows for r in (RECOMPUTE_NONE, *offered)]
        self.groups = list(self._groups())
        self.problem = pulp.LpProblem("layers", pulp.LpMinimize)
        self.step = pulp.LpVariable("T", lowBound=0)
        self.x: dict[tuple[int, int, int], Any] = {}
        self.u: dict[tuple[int, int], Any] = {}
        self.w: dict[tuple[int, int], Any] = {}
        self.problem += self.step
        self._assignment()
        for rank in range(decision.degrees.pp):
            self._switches(rank)
            self._memory(rank)
        self._pipeline()

    def _groups(self) -> Iterator[_Group]:
        chain = self.model.chain
        for rank in range(self.old.degrees.pp):
            for stage, items in rank_items(self.model, self.old, rank):
                merged: dict[tuple[int, int], int] = {}
                for item in items:
                    key = (item.kind, item.alive[0])
                    merged[key] = merged.get(key, 0) + item.count
                for (kind, held), count in merged.items():
                    is_block = chain.kinds[kind].role == "block"
                    yield _Group(rank, stage // self.old.degrees.pp, kind, count, held, is_block)

    def _kind(self, group: _Group, sharding: int) -> KindCost:
        return self.rows[sharding].kinds[group.kind]

    def _allowed(self, group: _Group) -> list[tuple[int, int]]:
        """Blocks choose; embeddings and heads keep the plan's sharding and are never recomputed."""
        return self.options if group.is_block else [(self.old.sharding, 0)]

    def _assignment(self) -> None:
        for index, group in enumerate(self.groups):
            for s, r in self._allowed(group):
                name = f"x_{index}_{s}_{r}"
                self.x[index, s, r] = self.pulp.LpVariable(name, 0, group.count, cat="Integer")
            total = self.pulp.lpSum(self.x[index, s, r] for s, r in self._allowed(group))
            self.problem += total == group.count

    def _on(self, rank: int) -> list[tuple[int, _Group]]:
        return [(index, group) for index, group in enumerate(self.groups) if group.rank == rank]

    def _switches(self, rank: int) -> None:
        for s in self.rows:
            self.u[rank, s] = self.pulp.LpVariable(f"u_{rank}_{s}", cat="Binary")
        for r in self.offered:
            self.w[rank, r] = self.pulp.LpVariable(f"w_{rank}_{r}", cat="Binary")
        for index, group in self._on(rank):
            for s in {s for s, _ in self._allowed(group)}:
                with_s = [self.x[index, s, r] for t, r in self._allowed(group) if t == s]
                self.problem += self.pulp.lpSum(with_s) <= group.count * self.u[rank, s]
            for r in self.offered:
                with_r = [self.x[index, s, r] for s, t in self._allowed(group) if t == r]
                if with_r:
                    self.problem += self.pulp.lpSum(with_r) <= group.count * self.w[rank, r]

    def _memory(self, rank: int) -> None:
        """All bytes in GiB, to keep the solver's numbers near one."""
        lp, on = self.pulp, self._on(rank)
        constants = self.model.constants
        slack = 1.0 + constants.allocator_slack
        gathered = lp.LpVariable(f"a_{rank}", lowBound=0)
        working = lp.LpVariable(f"b_{rank}", lowBound=0)
        terms, transient = [], 0.0
        for index, group in on:
            for s, r in self._allowed(group):
                kind = self._kind(group, s)
                each = kind.static_bytes + slack * group.in_flight * kind.saved_bytes[r]
                terms.append(each / GIB * self.x[index, s, r])
                self.problem += gathered >= kind.gathered_bytes / GIB * self.u[rank, s]
                if r:
                    self.problem += working >= kind.working_bytes[r] / GIB * self.w[rank, r]
                transient = max(transient, kind.transient_bytes)
        empty = self.stages.memory([])["total"]
        spare = (self.model.problem.memory_limit_bytes - empty - slack * transient) / GIB
        self.problem += lp.lpSum(terms) + slack * gathered + slack * working <= spare

    def _seconds(self, rank: int, chunk: int | None) -> Any:
        """Milliseconds of one microbatch on a rank (or on one of its chunks) as an expression."""
        terms = []
        for index, group in self._on(rank):
            if chunk is not None and group.chunk != chunk:
                continue
            for s, r in self._allowed(group):
                kind = self._kind(group, s)
                each = (kind.forward_seconds + kind.backward_seconds[r]) / MILLI
                terms.append(each * self.x[index, s, r])
        return self.pulp.lpSum(terms)

    def _pipeline(self) -> None:
        first_chunk = 0 if self.old.virtual_stages > 1 else None
        before = self.pulp.lpSum([])
        for rank in range(self.old.degrees.pp):
            own = self._seconds(rank, None)
            self.problem += self.step >= before + self.old.microbatches * own
            before = before + self._seconds(rank, first_chunk)

    def solve(self) -> dict[str, object]:
        """Run the bundled CBC; the status is data, never an exception."""
        pulp = self.pulp
        command = pulp.PULP_CBC_CMD(msg=False, timeLimit=TIME_LIMIT_SECONDS, gapRel=RELATIVE_GAP, threads=1)
        report: dict[str, object] = {
            "name": "CBC through PuLP",
            "variables": len(self.problem.variables()),
            "constraints": len(self.problem.constraints),
            "relative_gap": RELATIVE_GAP,
        }
        try:
            self.problem.solve(command)
        except pulp.PulpSolverError as error:
            return {**report, "status": "failed", "message": str(error)[:300]}
        words = {
            pulp.LpSolutionOptimal: "optimal",
            pulp.LpSolutionIntegerFeasible: "feasible",
            pulp.LpSolutionInfeasible: "infeasible",
        }
        report["status"] = words.get(self.problem.sol_status, "no solution")
        value = pulp.value(self.step)
        if value is not None:
            report["pipeline_seconds"] = value * MILLI
        return report

    def decision(self) -> Decision:
        """The solution as a decision: in each group full recompute first, sharded layers first."""
        chain, old = self.model.chain, self.old
        recompute, sharding = list(old.recompute), [old.sharding] * len(old.recompute)
        picks: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for index, group in enumerate(self.groups):
            if group.is_block:
                found = []
                for s, r in sorted(self.options, key=lambda o: (-o[1], -o[0])):
                    found += [(s, r)] * round(self.x[index, s, r].value() or 0)
                picks[group.rank, group.chunk, group.kind] = found
        for stage, (first, end) in enumerate(old.chunks):
            chunk, rank = stage // old.degrees.pp, rank_of_stage(old.schedule, stage, old.degrees.pp)
            for block in range(first, end):
                kind = chain.layers[chain.block_layers[block]]
                sharding[block], recompute[block] = picks[rank, chunk, kind].pop(0)
        same = all(code == old.sharding for code in sharding)
        return replace(old, recompute=tuple(recompute), layer_sharding=() if same else tuple(sharding))
