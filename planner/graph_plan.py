"""Plans of layer graphs that need not be chains: Piper's file in, stages out, and the check of such a plan.

A graph has no layers of a known model, so its plan is a document of its own (``kind`` graph), not a plan
file: it holds the graph it was made from, and ``check_graph_plan`` prices it again from there. Seconds are
those of the file, for one sample; objective and memory are Piper's (``cost.graph_table``).
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from planner import __version__
from planner.cost.graph_table import GraphStage, GraphTable, plan_load, stage_load
from planner.documents import read_document, validate
from planner.errors import InputError
from planner.file_checking import Finding
from planner.profiles.files import ProfileFile, recognise
from planner.profiles.piper import read_piper
from planner.search.downsets import search_graph
from planner.units import GIB, format_bytes

TOLERANCE = 1e-9


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class GraphInputs(_Record):
    """The graph as it was read, and the machine, which flags may have changed.

    ``samples``: samples (microbatches of one) in a batch; ``digest``: SHA-256 of the rest.
    """

    tool: Literal["piper"] = "piper"
    name: str
    file: dict[str, Any]
    devices: int = Field(gt=0)
    memory_bytes: float = Field(gt=0)
    samples: int = Field(gt=0)
    bytes_per_s: float = Field(gt=0)
    digest: str = ""


class GraphStageRecord(_Record):
    """One stage, first to last: nodes by id, replicas, tensor width, nodes that recompute; what it costs."""

    index: int
    nodes: list[str]
    dp: int = Field(gt=0)
    tp: int = Field(gt=0)
    recomputed: list[str] = []
    seconds_per_sample: float
    memory_bytes: float


class GraphPlanRecord(_Record):
    """A graph's plan, ``schema_version`` 1. ``load_seconds``: seconds a sample of the slowest stage."""

    schema_version: Literal[1] = 1
    kind: Literal["graph"] = "graph"
    planner_version: str
    inputs: GraphInputs
    stages: list[GraphStageRecord]
    load_seconds: float
    status: Literal["proved", "gap"]
    lower_bound_seconds: float
    gap: float

    def to_json(self) -> str:
        """The file's text: indented JSON, one trailing newline, same bytes for the same plan."""
        return self.model_dump_json(indent=2) + "\n"


def make_graph_plan(
    file: ProfileFile,
    *,
    devices: int | None = None,
    memory_bytes: float | None = None,
    samples: int | None = None,
) -> GraphPlanRecord:
    """The least load of a Piper graph, its machine replaced where arguments say so.

    Raises InputError for a file that is no such graph, InfeasibleError when nothing fits.
    """
    table = read_piper(file, devices=devices, memory_bytes=memory_bytes, samples=samples)
    found = search_graph(table)
    inputs = GraphInputs(
        name=file.name,
        file=file.content,
        devices=table.devices,
        memory_bytes=table.memory_bytes,
        samples=table.samples,
        bytes_per_s=table.bytes_per_s,
    )
    status: Any = found.status
    return GraphPlanRecord(
        planner_version=__version__,
        inputs=inputs.model_copy(update={"digest": _digest(inputs)}),
        stages=[_stage_record(table, index, found.stages) for index in range(len(found.stages))],
        load_seconds=found.load_seconds,
        status=status,
        lower_bound_seconds=found.lower_bound_seconds,
        gap=found.gap,
    )


def is_graph_plan(path: str) -> bool:
    """Whether a file is a graph's plan. Raises InputError for one that cannot be read as JSON or YAML."""
    place = Path(path)
    if place.is_dir() or place.suffix.lower() != ".json":
        return False
    return read_document(path).get("kind") == "graph"


def read_graph_plan(path: str) -> GraphPlanRecord:
    """The graph's plan in a file. Raises InputError naming the place when it is not one."""
    return validate(GraphPlanRecord, read_document(path), path)


def check_graph_plan(plan: GraphPlanRecord) -> list[Finding]:
    """Every check of a graph's plan, priced again from the graph inside it; nothing is searched."""
    inputs = plan.inputs
    try:
        table = _table(inputs)
        stages = _stages(table, plan)
    except InputError as error:
        return [Finding("graph", False, str(error))]
    held = [node for stage in stages for node in stage.nodes]
    place = {node: index for index, stage in enumerate(stages) for node in stage.nodes}
    is_whole = sorted(held) == list(range(len(table.nodes)))
    backward = [(u, v) for u, v in table.edges if is_whole and place[u] > place[v]]
    used = sum(stage.dp * stage.tp for stage in stages)
    odd = [stage.dp for stage in stages if table.samples % stage.dp]
    found = [
        Finding("inputs digest", _digest(inputs) == inputs.digest, f"{_digest(inputs)[:12]} of the inputs"),
        Finding("every node once", is_whole, f"stages hold {len(held)} of {len(table.nodes)} nodes"),
        Finding("edges run forward", not backward, f"{len(backward)} of {len(table.edges)} run backward"),
        Finding("devices", used <= table.devices, f"{used} of {table.devices}"),
        Finding("samples", not odd, f"{table.samples} samples over replicas {[s.dp for s in stages]}"),
    ]
    if not all(finding.holds for finding in found[1:]):
        return found
    load, costs = plan_load(table, stages), _costs(table, stages)
    peak = max(size for _, size in costs)
    stated = max(stage.memory_bytes for stage in plan.stages)
    same = math.isclose(load, plan.load_seconds, rel_tol=TOLERANCE)
    bound = plan.lower_bound_seconds
    return [
        *found,
        Finding("load", same, f"{load:.6g} s a sample priced again, {plan.load_seconds:.6g} stated"),
        Finding(
            "memory",
            peak <= table.memory_bytes and math.isclose(peak, stated, rel_tol=TOLERANCE),
            f"{format_bytes(peak)} of {format_bytes(table.memory_bytes)}, {format_bytes(stated)} stated",
        ),
        Finding("lower bound", bound <= load * (1 + TOLERANCE), f"{bound:.6g} s is not above the load"),
    ]


def _table(inputs: GraphInputs) -> GraphTable:
    """Raises InputError for a graph that was changed into nonsense."""
    return read_piper(
        recognise(inputs.name, inputs.file),
        devices=inputs.devices,
        memory_bytes=inputs.memory_bytes,
        samples=inputs.samples,
        bytes_per_s=inputs.bytes_per_s,
    )


def _stages(table: GraphTable, plan: GraphPlanRecord) -> tuple[GraphStage, ...]:
    number = {name: index for index, name in enumerate(table.nodes)}
    found = []
    for stage in plan.stages:
        unknown = [name for name in (*stage.nodes, *stage.recomputed) if name not in number]
        if unknown or stage.tp not in table.widths or not stage.nodes:
            what = f"node {unknown[0]}" if unknown else f"{len(stage.nodes)} nodes at width {stage.tp}"
            raise InputError(
                f"stage {stage.index}: {what}: not in the graph",
                allowed=sorted(table.widths),
                pointer=f"/stages/{stage.index}",
            )
        nodes = tuple(number[name] for name in stage.nodes)
        lean = tuple(number[name] for name in stage.recomputed)
        found.append(GraphStage(nodes, stage.dp, stage.tp, lean))
    return tuple(found)


def _costs(table: GraphTable, stages: tuple[GraphStage, ...]) -> list[tuple[float, float]]:
    """(seconds a sample, bytes) of every stage."""
    return [stage_load(table, stage, sum(s.dp for s in stages[i:])) for i, stage in enumerate(stages)]


def _stage_record(table: GraphTable, index: int, stages: tuple[GraphStage, ...]) -> GraphStageRecord:
    stage = stages[index]
    seconds, size = _costs(table, stages)[index]
    return GraphStageRecord(
        index=index,
        nodes=[table.nodes[node] for node in sorted(stage.nodes)],
        dp=stage.dp,
        tp=stage.tp,
        recomputed=[table.nodes[node] for node in sorted(stage.lean)],
        seconds_per_sample=seconds,
        memory_bytes=size,
    )


def _digest(inputs: GraphInputs) -> str:
    data = inputs.model_dump(mode="json", exclude={"digest"})
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def memory_limit(gib: float | None) -> float | None:
    """--memory-limit-gib in bytes. Raises InputError for anything but a positive number."""
    if gib is None:
        return None
    if not (math.isfinite(gib) and gib > 0):
        raise InputError(
            f"--memory-limit-gib must be a positive number, not {gib}", hint="use --memory-limit-gib 16"
        )
    return gib * GIB
