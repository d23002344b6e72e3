"""Explanations: the terms behind a plan, and what a forced choice would cost instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.api import make_plan
from planner.cost.decision_rows import decision_rows
from planner.cost.model import CostModel
from planner.cost.step import price
from planner.cost.traffic import Collective, rank_traffic
from planner.errors import InfeasibleError, InputError
from planner.explanation_terms import constant_record, explain_terms
from planner.plan_file.read import read_constants, read_cost_model, read_decision, read_errors
from planner.plan_file.schema import Plan
from planner.request import Request
from planner.search.reporter import Reporter
from planner.search.tree import Pins
from planner.strategy.decision import SHARDINGS, Decision
from planner.units import GIB

PIN_ALIASES = {"micro_batch": "microbatch_size", "mb": "microbatch_size", "vp": "virtual_stages"}
TEXT_PINS = ("sharding", "recompute", "schedule", "offload")


@dataclass(frozen=True)
class KindTerms:
    """One layer kind on one rank for one microbatch: seconds by cause and bytes by recompute mode."""

    name: str
    count: int
    forward_seconds: dict[str, float]
    backward_seconds: dict[str, float]
    saved_bytes: dict[str, float]
    parameters_per_rank: float


@dataclass(frozen=True)
class RankCollectives:
    """What every rank of one pipeline stage sends in an optimizer step, by axis and operation."""

    stage: int
    collectives: tuple[Collective, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"stage": self.stage, "collectives": [one.__dict__ for one in self.collectives]}


def rank_collectives(plan: Plan) -> list[RankCollectives]:
    """The collectives a plan predicts, one entry a pipeline rank (``planner.cost.traffic``)."""
    model, decision = read_cost_model(plan.inputs), read_decision(plan.decision)
    return [
        RankCollectives(rank, rank_traffic(model, decision, rank).collectives)
        for rank in range(decision.degrees.pp)
    ]


@dataclass(frozen=True)
class Explanation:
    """Layer terms, memory by stage, the groups' links, every term with its formulas, the constants used."""

    kinds: list[KindTerms]
    stage_memory: list[dict[str, float]]
    links: list[dict[str, Any]]
    terms: list[dict[str, Any]]
    constants: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kinds": [kind.__dict__ for kind in self.kinds],
            "stage_memory_bytes": self.stage_memory,
            "links": self.links,
            "terms": self.terms,
            "constants": self.constants,
        }


def explain_plan(plan: Plan) -> Explanation:
    """Re-price a plan from its own inputs and keep every term."""
    if plan.inputs.profile is not None:
        from planner.profile_explanation import explain_profile_plan

        return explain_profile_plan(plan)
    model = read_cost_model(plan.inputs)
    decision = read_decision(plan.decision)
    rows = decision_rows(model, decision)
    prediction = price(model, decision)
    kinds = []
    for (index, code), count in _layer_counts(model, decision).items():
        cost, d = rows[code].kinds[index], rows[code].degrees
        own = f", tp {d.tp}, {SHARDINGS[rows[code].sharding]}" if decision.layer_tp else ""
        kinds.append(
            KindTerms(
                name=f"{model.chain.kinds[index].name}{own}",
                count=count,
                forward_seconds=cost.forward,
                backward_seconds=cost.backward,
                saved_bytes=dict(zip(("none", "selective", "full"), cost.saved_bytes, strict=True)),
                parameters_per_rank=cost.dense_parameters + cost.expert_parameters,
            )
        )
    links = _links(plan)
    return Explanation(
        kinds=kinds,
        stage_memory=[s.memory_bytes for s in prediction.stages],
        links=links,
        terms=explain_terms(plan, model, prediction, links),
        constants=[
            constant_record(plan, name, value, meaning, source)
            for name, value, meaning, source in model.constants.rows()
        ],
    )


def _layer_counts(model: CostModel, decision: Decision) -> dict[tuple[int, int], int]:
    """Layers of every (kind, cost row), in the order of the kinds; one row a kind for a uniform plan."""
    position = {layer: block for block, layer in enumerate(model.chain.block_layers)}
    found: dict[tuple[int, int], int] = {}
    for layer, kind in enumerate(model.chain.layers):
        code = decision.row_code(position.get(layer)) if decision.layer_tp else decision.sharding
        found[kind, code] = found.get((kind, code), 0) + 1
    return dict(sorted(found.items()))


def _links(plan: Plan) -> list[dict[str, Any]]:
    """For each axis with more than one rank: the tiers its groups cross and the share they get."""
    model, decision = read_cost_model(plan.inputs), read_decision(plan.decision)
    every = [decision.degrees_of(tp) for tp in decision.tensor_degrees]
    d = every[0]
    axes = [
        *(("tp", 1, one.tp) for one in every),
        *(("cp", one.tp, one.cp) for one in every),
        *(("dp", one.tp, one.dp * one.cp) for one in every),
        ("ep", d.expert_tp, d.ep),
        ("pp", d.tp * d.cp * d.dp, d.pp),
    ]
    found = []
    for axis, stride, size in dict.fromkeys(axes):
        for crossing in model.problem.cluster.crossings(stride, size):
            found.append(
                {
                    "axis": axis,
                    "ranks": size,
                    "stride": stride,
                    "tier": crossing.link.name,
                    "units": crossing.units,
                    "groups_sharing_a_link": crossing.sharers,
                    "bytes_per_s": crossing.bytes_per_s,
                    "latency_seconds": crossing.link.latency_seconds,
                }
            )
    return found


@dataclass(frozen=True)
class Forced:
    """What a forced choice gives: a plan with it, or why there is none."""

    name: str
    value: str
    plan: Plan | None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the plan by its decision and prediction."""
        if self.plan is None:
            return {"choice": {self.name: self.value}, "feasible": False, "reason": self.reason}
        return {
            "choice": {self.name: self.value},
            "feasible": True,
            "decision": self.plan.decision.model_dump(mode="json"),
            "prediction": self.plan.prediction.model_dump(mode="json"),
        }


def forced_plan(plan: Plan, pin: tuple[str, str], *, reporter: Reporter | None = None) -> Forced:
    """The best plan of the same inputs with one choice forced.

    Raises InputError for an unknown choice or a value no rule allows.
    """
    if plan.inputs.profile is not None:
        from planner.profile_explanation import forced_profile_plan

        return forced_profile_plan(plan, pin)
    name, text = PIN_ALIASES.get(pin[0], pin[0]), pin[1]
    if name not in Pins.__dataclass_fields__:
        allowed = sorted(Pins.__dataclass_fields__)
        raise InputError(
            f"--why-not {name}: not a choice", allowed=allowed, hint=f"one of {', '.join(allowed)}"
        )
    value: int | str = text
    if name not in TEXT_PINS:
        try:
            value = int(text)
        except ValueError:
            raise InputError(f"--why-not {name}={text}: not a whole number", hint=f"{name}=8") from None
    inputs = plan.inputs
    request = Request(
        model=inputs.model,
        cluster=inputs.cluster.profile,
        gpus=inputs.cluster.gpus,
        seq_len=inputs.workload.sequence_length,
        global_batch=inputs.workload.global_batch,
        precision=inputs.workload.precision,
        optimizer=inputs.workload.optimizer,
        attention=inputs.workload.attention,
        memory_limit_gib=inputs.options.memory_limit_bytes / GIB,
        device=inputs.cluster.device,
        constants=read_constants(inputs.constants),
        errors=read_errors(inputs),
        origins=inputs.constant_origins,
    )
    pins = Pins(**{**inputs.options.pins, name: value})  # type: ignore[arg-type]
    try:
        found = make_plan(
            request, pins, target=inputs.options.target, top=1, reporter=reporter, suggest=False
        )
    except InfeasibleError as error:
        return Forced(name, text, None, error.message)
    return Forced(name, text, found)
