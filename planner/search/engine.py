"""Best-first search over the candidates of the decision tree.

Candidates are solved in the order of their lower bound. A candidate's solution is priced by the same
function that prices any decision; the search stops when no remaining bound can beat the worst of the plans
to be reported. The certificate is the smallest bound of anything solved or left.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from planner.cost.model import CostModel
from planner.cost.offload import usable_bytes
from planner.cost.row import CandidateRow
from planner.cost.step import Prediction, price
from planner.search.candidate import CandidateSolver, Solved
from planner.search.improvements import finer_gathers, mixed, polished, refined, with_best
from planner.search.path_branches import PathBranches
from planner.search.policy import recompute_policies, split_policies
from planner.search.reporter import Reporter
from planner.search.solution import TIE, Solution
from planner.search.space import Opened, Space
from planner.search.tree import Funnel, Pins
from planner.search.words import describe_space, no_candidates, nothing_fits
from planner.strategy.decision import Decision
from planner.strategy.kind import Kind
from planner.strategy.limits import Limits

PROVED_GAP = 1e-6
# Beyond this gap the candidates of the smallest bounds are polished too, not only the best plan's.
WIDE_GAP = 0.02
REOPENED = 8
RUNNER_UP_SOLVES = 100
DIVES = 16
# Candidates whose bound a path program is asked to raise.
MOST_PATH_PROGRAMS = 3


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
    certify: bool = True,
) -> SearchResult:
    """The best plan of the stated space for ``model``.

    ``certify`` False: bounds that keep the best plan from being proved get no closer look.

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
    run = BestFirst(model, space, limit, top, reporter, is_certified=certify)
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
        if lower < ranked[0].seconds * (1.0 - WIDE_GAP):
            ranked = with_best(ranked, [polished(model, limits, pins, [one])[0] for one in run.reopened()])
    ranked, solver = refined(model, limits, pins, ranked, reporter)
    is_refined = bool(solver.get("is_used"))
    if is_complete:
        uniform = ranked[0]
        ranked, solver = mixed(model, limits, pins, space, ranked, solver)
        if ranked[0] is not uniform:
            # The bound covered one sharding for all; that of the mixed plan covers the others.
            lower, is_refined = min(lower, ranked[0].bound_seconds), False
    best = ranked[0]
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


@dataclass
class BestFirst:
    """State of the best-first loop. Only plans faster than ``incumbent_seconds`` are looked for.

    is_certified: whether bounds that keep the best plan from being proved are worth a closer look.
    solver: of the run's candidates, once there is a run.
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
    solver: CandidateSolver | None = None
    path_programs: int = 0
    deadline: float = math.inf

    def over(self, deadline: float) -> bool:
        """Solve candidates in the order of their bounds until none can beat the best plan.

        False when stopped early. After that up to RUNNER_UP_SOLVES more candidates are solved for
        runners-up of other kinds, and the bounds that keep the best plan from being proved are looked at
        again.
        """
        asked = (self.model.chain, self.space.limits, self.space.pins.recompute)
        policies, split = recompute_policies(*asked), split_policies(*asked)
        solver = CandidateSolver(self.model, self.space.layout, self.limit, policies, split)
        self.solver = solver
        self.deadline = deadline
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
        """Raise the smallest bounds of solved candidates, until the best plan is proved or one stays.

        Each is looked at once: a second look finds the same.
        """
        seen: set[int] = set()
        while self.solved and time.process_time() <= deadline:
            lowest = min(range(len(self.solved)), key=lambda index: self.solved[index][0])
            bound, opened = self.solved[lowest]
            if lowest in seen or bound >= self._best() * (1.0 - PROVED_GAP):
                return
            seen.add(lowest)
            self.solved[lowest] = max(bound, self._raised(solver, bound, opened)), opened

    def _raised(self, solver: CandidateSolver, bound: float, opened: Opened) -> float:
        """A solved candidate's bound, from a closer look; at least as good a plan of it is kept."""
        row, best = self.space.row(opened), self._best()
        if row.virtual_stages > 1:
            return self._raised_on_chunks(solver, row, opened)
        solved = solver.solve(row, best)
        if solved is None:
            return best
        self._keep(self.space.kind(opened), solved, row, bound)
        return solved.bound_seconds

    def _raised_on_chunks(self, solver: CandidateSolver, row: CandidateRow, opened: Opened) -> float:
        """The same of a candidate whose chunks are known, by the critical paths of its schedule."""
        step, best = solver.chunked_step(row), self._best()
        plain = step.plain_bound()
        is_short = plain < best * (1.0 - PROVED_GAP) and self.path_programs < MOST_PATH_PROGRAMS
        program = solver.path_program(row, step) if is_short else None
        if program is None:
            return plain
        self.path_programs += 1
        bound = max(plain, program.bound(best, self.deadline))
        if bound < best * (1.0 - PROVED_GAP):
            branches = PathBranches(program, best, PROVED_GAP)
            bound = max(bound, branches.run(self.deadline))
            if branches.decisions:
                found = tuple(branches.decisions)
                self._keep(self.space.kind(opened), Solved(found, (bound,) * len(found), bound), row, bound)
        return bound

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

    def reopened(self) -> Iterator[Solution]:
        """The plans of the solved candidates of the smallest bounds, where these are below the best plan.

        A candidate's plan is dropped when another of its kind is faster; with a split nearby it may not be.
        """
        for bound, opened in sorted(self.solved, key=lambda pair: pair[0])[:REOPENED]:
            if self.solver is None or bound >= self._best():
                return
            row = self.space.row(opened)
            solved = self.solver.solve(row, math.inf)
            best = self._best_of(solved, {row.sharding: row}) if solved else None
            if best is not None:
                yield Solution(*best, bound)

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
