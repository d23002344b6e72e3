"""Best-first search over the candidates of the decision tree.

Candidates are solved in the order of their lower bound. A candidate's solution is priced by the same
function that prices any decision; the search stops when no remaining bound can beat the worst of the plans
to be reported. The certificate is the smallest bound of anything solved or left.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field, replace

from planner.cost.model import CostModel
from planner.cost.offload import usable_bytes
from planner.cost.row import CandidateRow
from planner.cost.step import Prediction, price
from planner.errors import InfeasibleError
from planner.schedule.orders import ZERO_BUBBLE
from planner.search.candidate import CandidateSolver, Solved
from planner.search.nearest_miss import nearest_miss
from planner.search.policy import SPLIT_RECOMPUTES, offered_modes, recompute_policies, split_policies
from planner.search.polish import polish
from planner.search.refinement import WORTH, is_memory_bound, paid_share, refine, strategies_of
from planner.search.reporter import Reporter
from planner.search.rescue import rescue
from planner.search.space import Opened, Space
from planner.search.tree import Funnel, Pins
from planner.strategy.decision import RECOMPUTES, Decision
from planner.strategy.kind import Kind
from planner.strategy.limits import Limits
from planner.units import format_bytes

TIE = 1e-9
PROVED_GAP = 1e-6
RUNNER_UP_SOLVES = 100
DIVES = 16


@dataclass(frozen=True)
class Solution:
    """A plan found: its decision, its prediction, and the bound of its candidate."""

    decision: Decision
    prediction: Prediction
    bound_seconds: float

    @property
    def seconds(self) -> float:
        return self.prediction.step_seconds


@dataclass
class SearchResult:
    """The best plan, runners-up that differ in kind (``strategy.kind``), and the certificate.

    status: "proved" when the gap is rounding, "gap" otherwise, "interrupted" when stopped early,
    "heuristic" when the integer program found a plan outside the bounded space.
    """

    best: Solution
    alternatives: list[Solution]
    lower_bound_seconds: float
    status: str
    space: str
    funnel: Funnel
    cpu_seconds: float
    solver: dict[str, object] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """(best - lower bound) / best."""
        return max(0.0, 1.0 - self.lower_bound_seconds / self.best.seconds)


def search(
    model: CostModel,
    limits: Limits,
    pins: Pins,
    *,
    top: int = 4,
    time_budget_seconds: float = math.inf,
    reporter: Reporter | None = None,
) -> SearchResult:
    """The best plan of the stated space for ``model``.

    Raises InfeasibleError with the nearest miss when nothing fits. Ctrl-C (or the time budget) returns the
    best plan so far with the bound known by then; without any plan yet KeyboardInterrupt passes on.
    """
    started = time.process_time()
    reporter = reporter or Reporter()
    funnel = Funnel()
    space = Space(model, limits, pins, funnel)
    if not space.has_candidates:
        raise no_candidates(funnel, pins)
    reporter.enumerated(len(space))
    limit = model.problem.memory_limit_bytes
    run = BestFirst(model, space, limit, top, reporter)
    is_complete = run.over(started + time_budget_seconds)
    space.close(run.tried)
    if not run.found:
        rescued = finer_gathers(model, limits, pins, space)
        if rescued is None:
            raise nothing_fits(model, funnel, space, pins)
        return SearchResult(
            best=rescued[0],
            alternatives=[],
            lower_bound_seconds=rescued[0].bound_seconds,
            status="heuristic" if is_complete else "interrupted",
            space=f"{describe_space(limits, pins)}; gathered in parts, for nothing fits in whole blocks",
            funnel=funnel,
            cpu_seconds=time.process_time() - started,
            solver=rescued[1],
        )
    lower = min([*(bound for bound, _ in run.solved), run.open_bound])
    ranked = run.ranked()
    if is_complete and lower < ranked[0].seconds * (1.0 - PROVED_GAP):
        ranked = polished(model, limits, pins, ranked)
    ranked, solver = refined(model, limits, pins, ranked, reporter)
    best = ranked[0]
    is_refined = bool(solver.get("is_used"))
    if not is_refined or not math.isfinite(lower):
        lower = min(lower, best.seconds)
    gap = 1.0 - lower / best.seconds
    status = "interrupted" if not is_complete else "proved" if gap <= PROVED_GAP else "gap"
    if is_refined and is_complete:
        # The bound covers uniform sharding; the refined plan mixes shardings, so it may even lie below it.
        status = "heuristic"
    return SearchResult(
        best=best,
        alternatives=ranked[1:top],
        lower_bound_seconds=lower,
        status=status,
        space=describe_space(limits, pins),
        funnel=funnel,
        cpu_seconds=time.process_time() - started,
        solver=solver,
    )


def polished(model: CostModel, limits: Limits, pins: Pins, ranked: list[Solution]) -> list[Solution]:
    """The ranked solutions, the best one moved to its fastest neighbour where every layer has its choice."""
    best = ranked[0]
    if limits.recompute_granularity != "layer" or pins.recompute is not None:
        return ranked
    modes = offered_modes(limits)
    if best.decision.schedule in ZERO_BUBBLE:
        modes = tuple(mode for mode in modes if RECOMPUTES[mode] in SPLIT_RECOMPUTES)
    decision = polish(model, best.decision, best.seconds, model.problem.memory_limit_bytes, modes)
    if decision == best.decision:
        return ranked
    return [Solution(decision, price(model, decision), best.bound_seconds), *ranked[1:]]


def finer_gathers(
    model: CostModel, limits: Limits, pins: Pins, space: Space
) -> tuple[Solution, dict[str, object]] | None:
    """A plan that gathers less than a block at once, where none that gathers whole blocks fits."""
    if pins.recompute is not None or len(limits.gather_units) < 2 or pins.schedule not in (None, "1f1b"):
        return None
    found = rescue(model, limits, *space.smallest())
    if found is None:
        return None
    # Finer gathers are never faster than whole ones: the bases' bounds hold for them too.
    return Solution(found.decision, found.prediction, space.floor_seconds()), found.solver


def refined(
    model: CostModel, limits: Limits, pins: Pins, ranked: list[Solution], reporter: Reporter
) -> tuple[list[Solution], dict[str, object]]:
    """The ranked solutions, the best one refined by the integer program when its memory binds."""
    best = ranked[0]
    strategies = strategies_of(model, best.decision, limits)
    is_free = pins.recompute is None and pins.sharding is None and len(strategies) > 1
    is_free &= best.decision.schedule not in ZERO_BUBBLE and limits.recompute_granularity == "layer"
    is_free &= not best.decision.layer_tp
    if not is_free or not is_memory_bound(best.decision):
        return ranked, {}
    share = paid_share(best.decision, best.prediction)
    if share < WORTH:
        words = f"nothing to gain: recomputation and gathers are {share:.2%} of the step"
        return ranked, {"name": "none", "status": words}
    reporter.refining(best.decision.label())
    refinement = refine(model, best.decision, best.seconds, strategies, offered_modes(limits))
    if refinement.decision is None or refinement.prediction is None:
        return ranked, refinement.solver
    better = Solution(refinement.decision, refinement.prediction, best.bound_seconds)
    return [better, *ranked[1:]], refinement.solver


@dataclass
class BestFirst:
    """State of the best-first loop. Only plans faster than ``incumbent_seconds`` are looked for.

    is_certified: whether bounds that keep the best plan from being proved are worth a closer look.
    """

    model: CostModel
    space: Space
    limit: float
    top: int
    reporter: Reporter
    incumbent_seconds: float = math.inf
    found: dict[Kind, Solution] = field(default_factory=dict)
    solved: list[tuple[float, Opened]] = field(default_factory=list)
    open_bound: float = math.inf
    tried: int = 0
    is_certified: bool = True

    def over(self, deadline: float) -> bool:
        """Solve candidates in the order of their bounds until none can beat the best plan.

        False when stopped early. After that up to RUNNER_UP_SOLVES more candidates are solved for
        runners-up of other kinds, and the bounds that keep the best plan from being proved are looked at
        again.
        """
        asked = (self.model.chain, self.space.limits, self.space.pins.recompute)
        policies, split = recompute_policies(*asked), split_policies(*asked)
        solver = CandidateSolver(self.model, self.space.layout, self.limit, policies, split)
        is_complete = self._loop(solver, deadline)
        if is_complete and self.found and self.is_certified:
            with contextlib.suppress(KeyboardInterrupt):
                self._tighten(replace(solver, is_exact=True), deadline)
        return is_complete

    def _loop(self, solver: CandidateSolver, deadline: float) -> bool:
        is_timed = math.isfinite(deadline)
        position = extra = 0
        is_settled = False
        try:
            while True:
                is_diving = self.tried < DIVES or math.isinf(self._best())
                opened = self.space.pop(self._best(), is_diving=is_diving)
                if opened is None:
                    return True
                bound = opened.bound_seconds
                is_settled = is_settled or bound >= self._best()
                threshold = self._threshold() if is_settled else self._best()
                if is_settled:
                    self.open_bound = min(self.open_bound, bound)
                    extra += 1
                    if bound >= threshold or extra > RUNNER_UP_SOLVES:
                        return True
                if is_timed and time.process_time() > deadline and self.found:
                    self.open_bound = min(self.open_bound, bound, self.space.smallest_bound())
                    return is_settled
                self.open_bound, before = min(self.open_bound, bound), self.open_bound
                self._try(solver, opened, threshold, is_settled)
                if not is_settled:
                    self.open_bound = before
                if position % 64 == 0:
                    self.reporter.progress(position + 1, self.space.num_left(), self._best(), bound)
                position += 1
        except KeyboardInterrupt:
            if not self.found:
                raise
            self.open_bound = min(self.open_bound, self.space.smallest_bound())
            return is_settled

    def _try(self, solver: CandidateSolver, opened: Opened, threshold: float, is_runner_up: bool) -> None:
        self.tried += 1
        key = self.space.kind(opened)
        known = self.found.get(key)
        cutoff = min(threshold, known.seconds if known else math.inf)
        row = self.space.row(opened)
        solved = solver.solve(row, cutoff)
        if solved is None:
            return
        if not is_runner_up:
            self.solved.append((max(solved.bound_seconds, opened.bound_seconds), opened))
        self._keep(key, solved, row, opened.bound_seconds)

    def _keep(self, key: Kind, solved: Solved, row: CandidateRow, bound: float) -> None:
        """Price the decisions of a solved candidate and keep the fastest if it is the mesh's best."""
        known = self.found.get(key)
        best = self._best_of(solved, {row.sharding: row})
        if best is None:
            return  # its bound stays: other splits of it may put less on the fullest node
        decision, prediction = best
        solution = Solution(decision, prediction, max(solved.bound_seconds, bound))
        if solution.prediction.peak_memory_bytes > self.limit * (1.0 + TIE):
            raise RuntimeError("the search accepted a plan whose reported memory passes the limit")
        if known is None or solution.seconds < known.seconds * (1.0 - TIE):
            if solution.seconds < self._best():
                self.reporter.improved(solution.decision.label(), solution.seconds)
            self.found[key] = solution

    def _tighten(self, solver: CandidateSolver, deadline: float) -> None:
        """Raise the smallest bounds of solved candidates, until the best plan is proved or one stays."""
        is_raised = True
        while is_raised and self.solved and time.process_time() <= deadline:
            lowest = min(range(len(self.solved)), key=lambda index: self.solved[index][0])
            bound, opened = self.solved[lowest]
            if bound >= self._best() * (1.0 - PROVED_GAP):
                return
            raised = self._raised(solver, bound, opened)
            is_raised = raised > bound
            self.solved[lowest] = max(bound, raised), opened

    def _raised(self, solver: CandidateSolver, bound: float, opened: Opened) -> float:
        """A solved candidate's bound, from a closer look; at least as good a plan of it is kept."""
        row, best = self.space.row(opened), self._best()
        if row.virtual_stages > 1:
            return solver.plain_bound(row)
        solved = solver.solve(row, best)
        if solved is None:
            return best
        self._keep(self.space.kind(opened), solved, row, bound)
        return solved.bound_seconds

    def _best_of(self, solved: Solved, rows: dict[int, CandidateRow]) -> tuple[Decision, Prediction] | None:
        """The fastest decision; those whose bound is behind one already priced need no price.

        None when every one of them puts more on a host than it holds.
        """
        room = usable_bytes(self.model.problem.cluster.host)
        best: tuple[Decision, Prediction] | None = None
        for bound, decision in sorted(
            zip(solved.bounds, solved.decisions, strict=True), key=lambda pair: pair[0]
        ):
            if best is not None and bound >= best[1].step_seconds:
                break
            prediction = price(self.model, decision, rows=rows)
            if prediction.host_bytes > room:
                continue
            if best is None or prediction.step_seconds < best[1].step_seconds:
                best = decision, prediction
        return best

    def _best(self) -> float:
        return min((s.seconds for s in self.found.values()), default=self.incumbent_seconds)

    def _threshold(self) -> float:
        """Seconds a new kind must beat to be reported: the worst of the ``top`` best kinds."""
        times = sorted(s.seconds for s in self.found.values())
        return times[self.top - 1] if len(times) >= self.top else self.incumbent_seconds

    def ranked(self) -> list[Solution]:
        """Solutions by seconds; ties by less memory, then by label."""
        return sorted(
            self.found.values(),
            key=lambda s: (round(s.seconds, 9), s.prediction.peak_memory_bytes, s.decision.label()),
        )


def describe_space(limits: Limits, pins: Pins) -> str:
    """The space searched, in words: what ``limits`` leave of the whole, and the pins."""
    degrees = [("tp", 2), ("cp", limits.max_cp), ("pp", limits.max_pp), ("dp", 2), ("ep", limits.max_ep)]
    axes = ", ".join(name for name, most in degrees if most > 1)
    schedule = "1F1B with any stage split" if limits.max_pp > 1 else "no pipeline"
    if limits.max_pp > 1 and "interleaved" in limits.schedules:
        schedule += ", interleaving with balanced chunks"
        schedule += "" if limits.is_exact else " (one degree per chunk depth)"
    if limits.max_pp > 1 and "zb-v" in limits.schedules:
        schedule += ", zero bubble"
    where = {"global": "global", "island": "inside an island"}
    sharding = f"{'/'.join(limits.shardings)} {' or '.join(where[g] for g in limits.sharding_groups)}"
    if limits.has_layer_sharding:
        sharding += " (parameters of single layers where memory binds)"
    recompute = {
        "layer": f"recompute {'/'.join(limits.recomputes)} per layer",
        "stage": f"one recompute of {'/'.join(limits.recomputes)}, or full on the first layers of each stage",
        "uniform": f"one recompute of {'/'.join(limits.recomputes)} for all layers",
    }[limits.recompute_granularity]
    text = f"all ({axes}) of all GPUs, microbatch sizes, {schedule}, one sharding of {sharding}, {recompute}"
    pinned = ", ".join(f"{name}={value}" for name, value in pins.items().items())
    return f"{text}; pinned: {pinned}" if pinned else text


def no_candidates(funnel: Funnel, pins: Pins) -> InfeasibleError:
    """The error for an empty decision tree: which rule cut the last candidates."""
    cut = funnel.last_cut() or {"step": "mesh", "reason": "no mesh"}
    pinned = ", ".join(f"{name} {value}" for name, value in pins.items().items())
    return InfeasibleError(
        f"no plan satisfies the rules: the last candidates fell to {cut['step']} ({cut['reason']})",
        hint=f"free one of the pinned choices: {pinned}"
        if pinned
        else "change the number of GPUs or the batch, or allow idle GPUs (plan --allow-idle)",
        rule=cut["step"],
        funnel=funnel.steps,
    )


def nothing_fits(model: CostModel, funnel: Funnel, space: Space, pins: Pins) -> InfeasibleError:
    """The error for a memory limit no candidate meets: the fullest rank of the nearest miss, in bytes.

    Where the rules on shardings left no candidate at all, the error for that.
    """
    table, least = space.smallest()
    if not len(table.candidates):
        return no_candidates(funnel, pins)
    miss = nearest_miss(model, table, least)
    limit = model.problem.memory_limit_bytes
    over = miss.peak_bytes - limit
    largest = sorted(
        ((name, value) for name, value in miss.memory_bytes.items() if name != "total"),
        key=lambda pair: -pair[1],
    )[:3]
    parts = ", ".join(f"{name} {format_bytes(value)}" for name, value in largest)
    cut = funnel.last_cut() or {"step": "memory", "reason": "no stage split fits the limit"}
    fullest = f"rank group of stage {miss.rank} needs {format_bytes(miss.peak_bytes)}"
    if over > 0.0:
        text = f"Nearest: {miss.decision.label()}, where {fullest}, {format_bytes(over)} too much ({parts})"
    else:
        # The nearest miss is tried with plain 1F1B: it fits, and a pinned schedule or a rule does not.
        text = f"Under plain 1f1b {miss.decision.label()} would fit, where {fullest}"
    return InfeasibleError(
        f"nothing fits {format_bytes(limit)} per GPU. {text}; rule {cut['step']} cut the last candidates",
        rule=cut["step"],
        nearest_miss={
            "decision": miss.decision.label(),
            "stage": miss.rank,
            "peak_memory_bytes": miss.peak_bytes,
            "over_bytes": over,
            "memory_bytes": miss.memory_bytes,
        },
        memory_limit_bytes=limit,
        funnel=funnel.steps,
    )
