"""Integer program for plans whose memory binds: what each block shards, gathers at once and recomputes.

The dynamic program gives every layer the plan's own sharding and gathers whole blocks. Where memory binds,
some layers are better sharded over the data ranks than recomputed, and gathered weights better held a matrix
at a time than a block: OSDP (arXiv 2305.09940) chooses both per operator. Here they are chosen together with
recompute for groups of equal layers, on the stages of a given decision. Its slices of one operator run in no
launcher; the units of ``cost.gather_units`` do (FSDP2 on modules inside a block), so those are the slices. An
optimizer on the host is the decision's own choice and stays as it is. PuLP is imported in this file only.

Sets: ranks i, groups g of equal layers on rank i (kind, chunk, microbatches in flight in each state k, n_g
layers), options o = (sharding, gather unit, recompute mode).

Variables
    x[g, o]    integer, layers of group g with option o
    z[i, d, o] binary, rank i has a layer of kind d with option o
    a[i], b[i] continuous, bytes of gathered weights and of the recomputed working set on rank i
    T          continuous, seconds until the last gradient is reduced
    r[i], v[i] continuous, seconds of reduction and of gather that rank i leaves exposed
    U          continuous, seconds of the slowest update and gather

Objective: minimise T + U.

Constraints (t, f, b seconds of one microbatch on a rank: both passes, forward, backward; c the stragglers)
    1. every layer has one option          sum_o x[g, o] = n_g                                   (_assignment)
    2. options switch their buffers on     x[g, o] <= n_g z[i, d, o], d the kind of g              (_switches)
    3. buffers, the largest of any         a[i] >= gathered[d, o] z[i, d, o],  b[i] >= working[d, o] z[..]
    4. memory, for every state k           static + alive_k x saved + a + b <= limit                 (_memory)
    5. pipeline                            T >= c (S_i + m t_i) + r[0],  T >= c (F_i + m t_i) + r[i], S and F
                                           the fill of the ranks before i, with and without drain  (_pipeline)
    6. exposed tails                       r[i] >= share of R_i, r[i] >= R_i - (1 - theft) b_i, v[i] the same
                                           of gathers behind f_i;  U >= update_i + v[i]                (_tail)

The result is priced by the same function as every decision and is used only when that is faster. Latencies
and sends are left out, so that every plan on these stages meets the constraints and takes no less than its
objective: the solver's bound (its optimum less its gap, else the linear relaxation) bounds them all, and is
stated as ``bound_seconds``. Walked memory (``cost.moments``) is not this sum: there the program proposes, and
states no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from planner.cost.memory import Item
from planner.cost.model import CostModel
from planner.cost.row import CandidateRow, KindCost
from planner.cost.sends import tied_embedding_seconds
from planner.cost.stage import StageModel
from planner.search.layer_groups import LayerGroup, Option, layer_groups, options_of
from planner.strategy.decision import (
    RECOMPUTE_NONE,
    UNIT_BLOCK,
    Decision,
    rank_of_stage,
    row_code,
)
from planner.units import GIB, MILLI

# Counted effort, so that every machine finds the same; the clock only ends what went wrong.
MOST_NODES = 300
TIME_LIMIT_SECONDS = 60.0
RELATIVE_GAP = 1e-4
# Few launchers run a plan whose layers differ: it has to be worth that.
MIN_GAIN = 1e-3
# CBC's own on constraints is 1e-7, and its answers are read with ten digits.
TOLERANCE = 1e-6
ROUNDING = 1.0 + 1e-9


def solver_library() -> Any | None:
    """PuLP, or None where it is not installed."""
    try:
        import pulp
    except ImportError:
        return None
    return pulp


def _forward_milliseconds(kind: KindCost, mode: int) -> float:
    return kind.forward_seconds / MILLI


def _backward_milliseconds(kind: KindCost, mode: int) -> float:
    return kind.backward_seconds[mode] / MILLI


def _pass_milliseconds(kind: KindCost, mode: int) -> float:
    return _forward_milliseconds(kind, mode) + _backward_milliseconds(kind, mode)


class LayerProgram:
    """The integer program of one decision."""

    def __init__(
        self,
        pulp: Any,
        model: CostModel,
        decision: Decision,
        rows: dict[int, CandidateRow],
        strategies: list[tuple[int, int]],
        offered: tuple[int, ...],
    ) -> None:
        self.pulp, self.model, self.old, self.rows = pulp, model, decision, rows
        self.stages: StageModel = model.stage_model(rows)
        self.options: list[Option] = [(s, r) for s in strategies for r in (RECOMPUTE_NONE, *offered)]
        self.groups = list(layer_groups(model, decision))
        self.floors: list[tuple[Any, Any]] = []
        self.tails: dict[tuple[int, int, int], dict[str, float]] = {}
        self.problem = pulp.LpProblem("layers", pulp.LpMinimize)
        self.step = pulp.LpVariable("T", lowBound=0)
        self.update = pulp.LpVariable("U", lowBound=0)
        self.x: dict[tuple[int, Option], Any] = {}
        self.z: dict[tuple[int, int, Option], Any] = {}
        self.problem += self.step + self.update
        self._assignment()
        for rank in range(decision.degrees.pp):
            self._switches(rank)
            self._memory(rank)
        self._pipeline()

    def _kind(self, group: LayerGroup, strategy: tuple[int, int]) -> KindCost:
        return self.rows[row_code(*strategy)].kinds[group.kind]

    def _allowed(self, group: LayerGroup) -> list[Option]:
        """Blocks choose; embeddings and heads keep the plan's sharding and are never recomputed."""
        return self.options if group.is_block else [((self.old.sharding, UNIT_BLOCK), RECOMPUTE_NONE)]

    def _assignment(self) -> None:
        for index, group in enumerate(self.groups):
            for number, option in enumerate(self._allowed(group)):
                name = f"x_{index}_{number}"
                self.x[index, option] = self.pulp.LpVariable(name, 0, group.count, cat="Integer")
            total = self._weighted((self.x[index, option], 1.0) for option in self._allowed(group))
            self.problem += total == group.count

    def _on(self, rank: int) -> list[tuple[int, LayerGroup]]:
        return [(index, group) for index, group in enumerate(self.groups) if group.rank == rank]

    def _switches(self, rank: int) -> None:
        blocks = [(index, group) for index, group in self._on(rank) if group.is_block]
        for kind in sorted({group.kind for _, group in blocks}):
            for number, option in enumerate(self.options):
                name = f"z_{rank}_{kind}_{number}"
                self.z[rank, kind, option] = self.pulp.LpVariable(name, cat="Binary")
        for index, group in blocks:
            for option in self.options:
                terms = (self.x[index, option], 1.0), (self.z[rank, group.kind, option], -group.count)
                self.problem += self._weighted(terms) <= 0

    def _memory(self, rank: int) -> None:
        """All bytes in GiB, to keep the solver's numbers near one."""
        lp, on = self.pulp, self._on(rank)
        slack = 1.0 + self.model.constants.allocator_slack
        gathered = lp.LpVariable(f"a_{rank}", lowBound=0)
        working = lp.LpVariable(f"b_{rank}", lowBound=0)
        transient, states = 0.0, max((len(group.alive) for _, group in on), default=0)
        terms: list[list[tuple[Any, float]]] = [[] for _ in range(states)]
        # Buffers by kind and option; None for what every plan has.
        largest: dict[tuple[int, Option] | None, tuple[float, float]] = {}
        for index, group in on:
            for option in self._allowed(group):
                kind, mode = self._kind(group, option[0]), option[1]
                for state, alive in enumerate(group.alive):
                    each = kind.static_bytes + slack * alive * kind.saved_bytes[mode]
                    terms[state].append((self.x[index, option], each / GIB))
                key = (group.kind, option) if group.is_block else None
                known = largest.get(key, (0.0, 0.0))
                needs = kind.working_bytes[mode] if mode else 0.0
                largest[key] = max(known[0], kind.gathered_bytes[mode]), max(known[1], needs)
                transient = max(transient, kind.transient_bytes)
        for key, sizes in largest.items():
            is_on = 1.0 if key is None else self.z[rank, key[0], key[1]]
            for buffer, size in zip((gathered, working), sizes, strict=True):
                if size:
                    self.problem += buffer >= size / GIB * is_on
        empty = self.stages.memory([])["total"]
        # A plan that fits to the byte must, for all the digits CBC is given.
        limit = self.model.problem.memory_limit_bytes * ROUNDING
        spare = (limit - empty - slack * transient) / GIB
        for state in range(states):
            self.problem += self._weighted([*terms[state], (gathered, slack), (working, slack)]) <= spare

    def _sum(self, rank: int, value: Callable[[KindCost, int], float], chunk: int | None = None) -> Any:
        """``value`` of a layer and its mode, summed over a rank's layers (or those of one of its chunks)."""
        terms = []
        for index, group in self._on(rank):
            if chunk is not None and group.chunk != chunk:
                continue
            for option in self._allowed(group):
                terms.append((self.x[index, option], value(self._kind(group, option[0]), option[1])))
        return self._weighted(terms)

    def _weighted(self, terms: Iterable[tuple[Any, float]]) -> Any:
        """The sum of (variable, weight), each variable once."""
        return self.pulp.LpAffineExpression(list(terms))

    def _pipeline(self) -> None:
        """Milliseconds. What rank 0 reduces follows the drain of every rank, a rank's own its own work."""
        first_chunk = 0 if self.old.virtual_stages > 1 else None
        m, factor = self.old.microbatches, self.model.straggler_factor
        filled = forward_filled = self.pulp.lpSum([])
        first_reduction: Any = 0.0
        for rank in range(self.old.degrees.pp):
            reduction = self._tail(rank)
            first_reduction = first_reduction if rank else reduction
            own = self._sum(rank, _pass_milliseconds)
            self._at_least(self.step, factor * (filled + m * own) + first_reduction)
            self._at_least(self.step, factor * (forward_filled + m * own) + reduction)
            filled = filled + self._sum(rank, _pass_milliseconds, first_chunk)
            forward_filled = forward_filled + self._sum(rank, _forward_milliseconds, first_chunk)

    def _tail(self, rank: int) -> Any:
        """The reduction a rank leaves exposed, as ``exposed_tail`` has it; its update and gather go to U."""
        stack, theft = self.model.stack, self.model.constants.overlap_theft
        terms: dict[str, list[tuple[Any, float]]] = {"reduce": [], "gather": [], "optimizer": []}
        elements = 0.0
        for index, group in self._on(rank):
            for option in self._allowed(group):
                for name, each in self._layer_tail(group, option).items():
                    terms[name].append((self.x[index, option], each))
            kind = self._kind(group, (self.old.sharding, UNIT_BLOCK))
            elements += group.count * (kind.dense_parameters + kind.expert_parameters)
        data_ranks = self.old.degrees.dp * self.old.degrees.cp
        bucket = max(stack.bucket_parameters, stack.bucket_parameters_per_rank * data_ranks)
        buckets = max(1.0, elements / bucket)
        exposed = []
        for name, is_hidden, window in (
            ("reduce", stack.hides_gradient_reduction, _backward_milliseconds),
            ("gather", stack.hides_parameter_gather, _forward_milliseconds),
        ):
            whole = self._weighted(terms[name])
            left = self.pulp.LpVariable(f"{name}_{rank}", lowBound=0)
            if is_hidden:
                self._at_least(left, max(theft, 1.0 / buckets) * whole)
                self._at_least(left, whole - (1.0 - theft) * self._sum(rank, window))
            else:
                self._at_least(left, whole)
            exposed.append(left)
        self._at_least(self.update, self._weighted(terms["optimizer"]) + exposed[1])
        return exposed[0]

    def _at_least(self, variable: Any, value: Any) -> None:
        """A constraint from below; ``value``: of x and of variables all of whose own are stated before."""
        self.problem += variable >= value
        self.floors.append((variable, value))

    def _known_milliseconds(self) -> float:
        """The objective of the decision the program starts from."""
        chosen = options_of(self.model, self.old)
        for (index, option), variable in self.x.items():
            group = self.groups[index]
            own = chosen.get((group.rank, group.chunk, group.kind), []) if group.is_block else []
            variable.varValue = own.count(option) if group.is_block else group.count
        for variable, _ in self.floors:
            variable.varValue = 0.0
        for variable, value in self.floors:
            variable.varValue = max(variable.varValue, self.pulp.value(value))
        return float(self.pulp.value(self.step + self.update))

    def _layer_tail(self, group: LayerGroup, option: Option) -> dict[str, float]:
        """Milliseconds one layer adds to a rank's reduction, gather and update; latencies left out."""
        key = group.kind, *option[0]
        if key not in self.tails:
            self.tails[key] = self._kind_tail(group, option)
        return self.tails[key]

    def _kind_tail(self, group: LayerGroup, option: Option) -> dict[str, float]:
        (sharding, unit), mode = option
        found = []
        for count in (1, 2):
            total = self.stages.synchronised([Item(group.kind, count, mode, sharding, group.alive, unit)])
            tail = self.stages.exposed(total, 0.0, 0.0)
            found.append((total.reduce, total.gather, tail.optimizer))
        return {
            name: max(0.0, float(two - one)) / MILLI
            for name, one, two in zip(("reduce", "gather", "optimizer"), *found, strict=True)
        }

    def solve(self, to_beat_seconds: float = math.inf) -> dict[str, object]:
        """Run the bundled CBC; the status is data, never an exception.

        Only relaxed where even that does not come below ``to_beat_seconds``, or takes less than MIN_GAIN off
        what the program makes of the decision it starts from: it sees nothing to gain, whatever the price.
        """
        pulp = self.pulp
        report: dict[str, object] = {
            "name": "CBC through PuLP",
            "variables": len(self.problem.variables()),
            "constraints": len(self.problem.constraints),
            "relative_gap": RELATIVE_GAP,
        }
        try:
            relaxed = self._relaxed_milliseconds()
            if relaxed is not None and math.isfinite(to_beat_seconds):
                is_near = relaxed >= self._known_milliseconds() * (1.0 - MIN_GAIN)
                bound = self._floor_seconds(relaxed)
                if is_near or bound >= to_beat_seconds:
                    return {**report, "status": "no better by its relaxation", "bound_seconds": bound}
            self.problem.solve(self._command())
        except pulp.PulpSolverError as error:
            return {**report, "status": "failed", "message": str(error)[:300]}
        words = {
            pulp.LpSolutionOptimal: "optimal",
            pulp.LpSolutionIntegerFeasible: "feasible",
        }
        # CBC calls a program without whole numbers "integer infeasible", which PuLP's solution status misses.
        is_infeasible = self.problem.status == pulp.LpStatusInfeasible
        known = "infeasible" if is_infeasible else words.get(self.problem.sol_status)
        report["status"] = known or "no solution"
        value = pulp.value(self.step + self.update)
        if value is not None:
            report["objective_seconds"] = value * MILLI
        bounds = [relaxed]
        if report["status"] == "optimal" and value is not None:
            bounds.append(value * (1.0 - RELATIVE_GAP))
        stated = [bound for bound in bounds if bound is not None]
        if stated and not self.model.stack.makes_buffers_when_needed:
            report["bound_seconds"] = self._floor_seconds(max(stated))
        return report

    def _floor_seconds(self, milliseconds: float) -> float:
        """The step of ``milliseconds`` of objective, less the solver's tolerance; 0 where it bounds none."""
        if self.model.stack.makes_buffers_when_needed:
            return 0.0
        fixed = tied_embedding_seconds(self.model, self.stages.row)
        fixed += self.model.constants.step_overhead_seconds
        return milliseconds * (1.0 - TOLERANCE) * MILLI + fixed

    def _command(self, *, is_relaxed: bool = False) -> Any:
        return self.pulp.PULP_CBC_CMD(
            msg=False,
            timeLimit=TIME_LIMIT_SECONDS,
            gapRel=RELATIVE_GAP,
            threads=1,
            mip=not is_relaxed,
            maxNodes=MOST_NODES,
        )

    def _relaxed_milliseconds(self) -> float | None:
        """The linear relaxation's objective, None when it has no solution."""
        self.problem.solve(self._command(is_relaxed=True))
        if self.problem.sol_status != self.pulp.LpSolutionOptimal:
            return None
        value = self.pulp.value(self.step + self.update)
        return None if value is None else float(value)

    def decision(self) -> Decision:
        """The solution as a decision: in each group full recompute first, sharded layers first."""
        chain, old = self.model.chain, self.old
        recompute, sharding = list(old.recompute), [old.sharding] * len(old.recompute)
        units = [UNIT_BLOCK] * len(old.recompute)
        picks: dict[tuple[int, int, int], list[Option]] = {}
        for index, group in enumerate(self.groups):
            if group.is_block:
                found: list[Option] = []
                for option in sorted(self.options, key=lambda o: (-o[1], -o[0][0], -o[0][1])):
                    found += [option] * round(self.x[index, option].value() or 0)
                picks[group.rank, group.chunk, group.kind] = found
        for stage, (first, end) in enumerate(old.chunks):
            chunk, rank = stage // old.degrees.pp, rank_of_stage(old.schedule, stage, old.degrees.pp)
            for block in range(first, end):
                kind = chain.layers[chain.block_layers[block]]
                (sharding[block], units[block]), recompute[block] = picks[rank, chunk, kind].pop(0)
        same = all(code == old.sharding for code in sharding)
        return replace(
            old,
            recompute=tuple(recompute),
            layer_sharding=() if same else tuple(sharding),
            layer_units=tuple(units) if any(units) else (),
        )
