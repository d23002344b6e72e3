"""From a plan file back to a decision and the model that prices it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from planner.calibration.error_bars import ErrorBars
from planner.calibration.shipped import shipped
from planner.cluster.topology import resolve_cluster
from planner.cost.constants import Constants
from planner.cost.step import CostModel
from planner.documents import read_document, validate
from planner.errors import InputError, UnsupportedFeature
from planner.plan_file.schema import DecisionRecord, Inputs, Plan
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
    return validate(Plan, read_document(Path(path)), str(path))


def read_decision(record: DecisionRecord) -> Decision:
    """The decision a record states."""
    d = record.degrees
    blocks = _blocks(record)
    recompute, sharding = [0] * blocks, [SHARDINGS.index(record.sharding)] * blocks
    units = [0] * blocks
    for stage in record.stages:
        for run in stage.layer_strategies:
            for block in range(run.layers[0], run.layers[1] + 1):
                recompute[block] = RECOMPUTES.index(run.recompute)
                sharding[block] = SHARDINGS.index(run.sharding)
                units[block] = GATHER_UNITS.index(run.gather_unit)
    own = SHARDINGS.index(record.sharding)
    return Decision(
        degrees=Degrees(d.dp, d.tp, d.pp, d.cp, d.ep, d.expert_tp),
        sequence_parallel=record.sequence_parallel,
        sharding=own,
        sharding_group=SHARDING_GROUPS.index(record.sharding_group),
        schedule=record.schedule,
        virtual_stages=record.virtual_stages,
        microbatch_size=record.microbatch_size,
        microbatches=record.microbatches,
        chunks=tuple((stage.layers[0], stage.layers[1] + 1) for stage in record.stages),
        recompute=tuple(recompute),
        layer_sharding=() if all(code == own for code in sharding) else tuple(sharding),
        offload=OFFLOADS.index(record.offload),
        layer_units=tuple(units) if any(units) else (),
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
            hint="use planner check or planner export, or plan again without --profile",
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
    """The constants a plan file states; fields of other versions are left out."""
    known = {f.name for f in fields(Constants)}
    found = {name: value for name, value in values.items() if name in known}
    found["link_efficiency"] = tuple(dict(found["link_efficiency"]).items())
    return Constants(**found)
