"""From a plan file back to a decision and the model that prices it."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from planner.calibration.error_bars import ErrorBars
from planner.calibration.shipped import shipped
from planner.cluster.topology import resolve_cluster
from planner.cost.constants import Constants
from planner.cost.model import CostModel
from planner.documents import read_document, validate
from planner.errors import InputError, UnsupportedFeature
from planner.plan_file.schema import DecisionRecord, Inputs, LayerStrategyRecord, Plan
from planner.strategy.candidates import Problem
from planner.strategy.decision import (
    GATHER_UNITS,
    OFFLOADS,
    RECOMPUTES,
    SHARDING_GROUPS,
    SHARDINGS,
    Decision,
    Degrees,
)


def read_plan(path: str | Path) -> Plan:
    """The plan in a file. Raises InputError naming the file and the place when it is not one."""
    document = read_document(Path(path))
    if document.get("kind") == "graph":
        raise InputError(
            "the plan of a layer graph: it names no model, and only check reads it",
            file=str(path),
            hint=f"use planner check {path}",
        )
    return validate(Plan, document, str(path))


def read_decision(record: DecisionRecord) -> Decision:
    """The decision a record states.

    Raises InputError where stages do not hold every layer once and in order, and for degrees of a layer that
    no cost follows from.
    """
    own = _ends(record)
    blocks = _blocks(record)
    recompute, sharding = [0] * blocks, [SHARDINGS.index(record.sharding)] * blocks
    units = [0] * blocks
    tensor = [record.degrees.tp] * blocks
    for stage in record.stages:
        for index, run in enumerate(stage.layer_strategies):
            _check_degrees(record, run, f"/decision/stages/{stage.index}/layer_strategies/{index}")
            for block in range(run.layers[0], run.layers[1] + 1):
                recompute[block] = RECOMPUTES.index(run.recompute)
                sharding[block] = SHARDINGS.index(run.sharding)
                units[block] = GATHER_UNITS.index(run.gather_unit)
                tensor[block] = run.tp
    code = SHARDINGS.index(record.sharding if record.ends is None else record.ends.sharding)
    return Decision(
        degrees=own,
        sequence_parallel=record.sequence_parallel,
        sharding=code,
        sharding_group=SHARDING_GROUPS.index(record.sharding_group),
        schedule=record.schedule,
        virtual_stages=record.virtual_stages,
        microbatch_size=record.microbatch_size * record.degrees.dp // own.dp,
        microbatches=record.microbatches,
        chunks=tuple((stage.layers[0], stage.layers[1] + 1) for stage in record.stages),
        recompute=tuple(recompute),
        layer_sharding=() if all(one == code for one in sharding) else tuple(sharding),
        offload=OFFLOADS.index(record.offload),
        layer_units=tuple(units) if any(units) else (),
        layer_tp=() if all(tp == own.tp for tp in tensor) else tuple(tensor),
    )


def _ends(record: DecisionRecord) -> Degrees:
    """The degrees of embedding and head: those of the plan, or their own."""
    d, ends = record.degrees, record.ends
    if ends is None:
        return Degrees(d.dp, d.tp, d.pp, d.cp, d.ep, d.expert_tp)
    _check_ranks(record, ends.tp, ends.cp, ends.dp, d.ep, "/decision/ends")
    return Degrees(ends.dp, ends.tp, d.pp, ends.cp, d.ep, d.expert_tp)


def _check_degrees(record: DecisionRecord, run: LayerStrategyRecord, pointer: str) -> None:
    """A layer's tp and dp may be its own; cp, ep and, beside others, the split sequence may not."""
    _check_ranks(record, run.tp, run.cp, run.dp, run.ep, pointer)
    if (
        run.tp != record.degrees.tp
        and run.tp > 1
        and not (run.sequence_parallel and record.sequence_parallel)
    ):
        raise InputError(
            f"layers {run.layers[0]} to {run.layers[1]} have tp {run.tp} beside tp {record.degrees.tp}: "
            "such layers are priced with sequence parallelism alone",
            pointer=f"{pointer}/sequence_parallel",
            hint="set sequence_parallel to true for these layers and for the decision",
        )


def _check_ranks(record: DecisionRecord, tp: int, cp: int, dp: int, ep: int, pointer: str) -> None:
    d = record.degrees
    if (cp, ep) != (d.cp, d.ep):
        raise InputError(
            f"cp {cp} and ep {ep} of single layers in a plan of cp {d.cp} and ep {d.ep}: one is priced",
            pointer=pointer,
            hint=f"use cp {d.cp} and ep {d.ep}",
        )
    if tp * dp != d.tp * d.dp:
        raise InputError(
            f"tp {tp} x dp {dp} = {tp * dp} ranks; the plan's other layers have tp {d.tp} x dp {d.dp} = "
            f"{d.tp * d.dp}",
            pointer=pointer,
            hint=f"use dp {d.tp * d.dp // tp}" if d.tp * d.dp % tp == 0 else f"use tp {d.tp} and dp {d.dp}",
        )
    if record.microbatch_size * d.dp % dp:
        raise InputError(
            f"dp {dp}: a microbatch has {record.microbatch_size * d.dp} sequences",
            pointer=pointer,
            hint=f"use dp {d.dp}",
        )


def _blocks(record: DecisionRecord) -> int:
    """Number of blocks; raises InputError when stages do not hold each block once and in order."""
    at = 0
    for stage in record.stages:
        first, last = stage.layers
        if first != at or last < first:
            raise InputError(
                f"stage {stage.index} holds layers {first} to {last}, but the next layer is {at}: stages "
                f"must hold every layer once and in order",
                pointer=f"/decision/stages/{stage.index}/layers",
                hint=f"start stage {stage.index} at layer {at}",
            )
        at = last + 1
    return at


def read_cost_model(inputs: Inputs) -> CostModel:
    """The cost model of a plan's own inputs: its machine, its constants, its workload.

    Raises UnsupportedFeature for a plan priced on a measured profile, which no formula may price again.
    """
    if inputs.profile is not None:
        raise UnsupportedFeature(
            "this plan was priced on a measured profile; this command prices with the analytical model",
            hint="use planner explain, trace, check or export, or plan again without --profile",
        )
    cluster = resolve_cluster(inputs.cluster.profile, inputs.cluster.device, inputs.cluster.gpus)
    problem = Problem(inputs.model, cluster, inputs.workload, inputs.options.memory_limit_bytes)
    return CostModel.of(problem, read_constants(inputs.constants), inputs.options.stack)


def read_errors(inputs: Inputs) -> ErrorBars:
    """The error bars a plan was made with; the shipped ones for files that do not state them."""
    stated = inputs.errors
    if stated is None:
        return shipped().errors_of(inputs.cluster.device.generation, "megatron")
    return ErrorBars(stated.closeness, stated.time, stated.memory, stated.ranking_noise)


def read_constants(values: dict[str, Any]) -> Constants:
    """The constants a plan file states; fields of other versions are left out.

    Raises InputError for one that is no finite number.
    """
    known = {f.name for f in fields(Constants)}
    found = {name: value for name, value in values.items() if name in known}
    links = found.pop("link_efficiency", {})
    numbers = {name: value for name, value in found.items() if name != "basis"}
    for name, value in {"link_efficiency": links, **numbers}.items():
        inner = value.values() if name == "link_efficiency" and isinstance(value, dict) else [value]
        if not all(isinstance(one, (int, float)) and math.isfinite(one) for one in inner):
            raise InputError(
                f"must be a finite number, not {value!r}",
                pointer=f"/inputs/constants/{name}",
                hint="plan again, or leave the constant out: then its literature value counts",
            )
    return Constants(**found, link_efficiency=tuple(links.items())) if links else Constants(**found)
