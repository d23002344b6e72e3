"""What every launcher offers: limits for the search, reasons why a plan cannot be expressed, export."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

from planner.errors import UnsupportedByTarget
from planner.plan_file.schema import Inputs, Plan
from planner.strategy.limits import Limits


@dataclass(frozen=True)
class Reason:
    """Why a plan cannot be expressed: the rule, what it says, this plan's numbers, what would work."""

    rule: str
    statement: str
    numbers: str
    nearest: str

    def text(self) -> str:
        """One line for people."""
        return f"{self.rule}: {self.statement}; {self.numbers}; nearest that works: {self.nearest}"


@dataclass(frozen=True)
class Break:
    """A broken rule's particulars: the plan's numbers and the nearest value that would work."""

    numbers: str
    nearest: str


@dataclass(frozen=True)
class Rule:
    """A rule of a launcher. ``check`` returns the particulars when the plan breaks it, else None."""

    name: str
    statement: str
    check: Callable[[Plan], Break | None]


def interleaving_break(plan: Plan) -> Break | None:
    """What every launcher asks of an interleaved pipeline: more than one rank and chunk, whole rounds."""
    q, pp = plan.decision, plan.decision.degrees.pp
    if pp == 1 or q.virtual_stages == 1:
        return Break(f"interleaved with pp {pp} and {q.virtual_stages} virtual stages", "schedule 1f1b")
    if q.microbatches % pp:
        low = max(pp, q.microbatches // pp * pp)
        return Break(f"{q.microbatches} microbatches for pp {pp}", f"{low} microbatches")
    return None


class Launcher(Protocol):
    """A training framework a plan can be exported to.

    ``limits`` is what the search may use; ``verified_by`` says how the written files were checked.
    """

    @property
    def name(self) -> str:
        """The launcher's name on the command line."""
        ...

    @property
    def limits(self) -> Limits:
        """What the launcher can express, as the search reads it."""
        ...

    @property
    def verified_by(self) -> str:
        """How the written files were checked."""
        ...

    def reasons(self, plan: Plan) -> list[Reason]:
        """Why the plan cannot be expressed; empty when it can."""
        ...

    def export(self, plan: Plan) -> dict[str, str]:
        """File name to text. Raises UnsupportedByTarget with every reason when not expressible."""
        ...


class NotChosenYet(Exception):
    """A rule asked an undecided plan for more than its inputs."""


class _Undecided:
    """A plan of which only the inputs are known."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs

    def __getattr__(self, name: str) -> Any:
        raise NotChosenYet(name)


def undecided(inputs: Inputs) -> Plan:
    """What a launcher's ``reasons`` can be asked before a search: rules that read the inputs alone answer.

    Such a rule breaks for every plan of these inputs, so that there is nothing to search for.
    """
    return cast(Plan, _Undecided(inputs))


def broken(rules: Iterable[Rule], plan: Plan) -> list[Reason]:
    """The reasons of every rule the plan breaks, in the rules' order; rules an undecided plan cannot tell
    are left out.
    """
    found = []
    for rule in rules:
        try:
            particulars = rule.check(plan)
        except NotChosenYet:
            continue
        if particulars is not None:
            found.append(Reason(rule.name, rule.statement, particulars.numbers, particulars.nearest))
    return found


def require_expressible(target: str, reasons: list[Reason]) -> None:
    """Raises UnsupportedByTarget (exit 5) naming every reason, unless there is none."""
    if not reasons:
        return
    lines = "; ".join(f"({index}) {reason.text()}" for index, reason in enumerate(reasons, 1))
    raise UnsupportedByTarget(
        f"{target} cannot express this plan: {lines}",
        hint=f"plan again with --target {target}, which keeps the search to what {target} can run",
        target=target,
        reasons=[asdict(reason) for reason in reasons],
    )


def nearest_divisor(value: int, wanted: int) -> int:
    """The divisor of ``value`` nearest to ``wanted``; the smaller of two equally near."""
    divisors = [d for d in range(1, min(value, 2 * wanted) + 1) if value % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), d))
