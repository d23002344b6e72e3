"""Plan file, schema_version 1. Field names carry units; readers ignore fields they do not know.

A minor change adds fields; renaming or removing one needs a new schema_version.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from planner.cluster.spec import ClusterProfile, DeviceSpec
from planner.model.spec import ModelSpec
from planner.workload import Workload

Sharding = Literal["none", "optimizer", "gradients", "parameters"]
ShardingGroup = Literal["global", "island"]
Recompute = Literal["none", "selective", "full"]
GatherUnit = Literal["block", "part", "matrix"]
Offload = Literal["none", "optimizer"]
Schedule = Literal["1f1b", "interleaved", "gpipe", "zb-h1", "zb-v", "zb-h2"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


def _without_absent(data: dict[str, Any], name: str) -> dict[str, Any]:
    """``data`` without a field that is null: files of plans that do not use it stay as they are."""
    return {key: value for key, value in data.items() if key != name or value is not None}


class ClusterInput(_Record):
    """The cluster exactly as planned on: profile, device description, and how many devices of it."""

    profile: ClusterProfile
    device: DeviceSpec
    gpus: int = Field(gt=0)


class ErrorsRecord(_Record):
    """How far a measured run may lie from its prediction (see the calibration's ``error_bars``).

    time and memory: 10 % and 90 % quantiles of log(predicted / measured); ranking_noise: the same between
    plans of one search; closeness: same, part or datasheet.
    """

    closeness: str
    time: tuple[float, float]
    memory: tuple[float, float]
    ranking_noise: float | None = None


class Options(_Record):
    """Search options: launcher target, memory limit per device, pinned choices, alternatives asked for.

    ``stack`` names the training stack whose bytes and overlaps the plan is priced with.
    ``oom_risk`` is the highest P(out of memory) that the limit was made for, null where the limit was given.
    """

    target: str = "any"
    stack: str = "megatron"
    memory_limit_bytes: float = Field(gt=0)
    oom_risk: float | None = None
    pins: dict[str, int | str] = {}
    top: int = 4
    assumptions: list[str] = []


class ProfileInput(_Record):
    """Measured profile files a plan was priced on, by name, as they were read."""

    tool: Literal["galvatron"]
    files: dict[str, dict[str, Any]]


class Inputs(_Record):
    """Everything needed to repeat the run. ``digest`` is the SHA-256 of the rest in canonical JSON.

    ``constant_origins`` says of each constant that is no literature prior what it was fitted to or measured
    with; ``errors`` are the error bars the prediction carries.
    ``profile`` is set when measured files priced the plan; then ``constants`` and the numbers of the device
    enter no prediction. It is left out of files of other plans.
    """

    model: ModelSpec
    cluster: ClusterInput
    workload: Workload
    options: Options
    constants: dict[str, Any]
    constant_origins: dict[str, str] = {}
    errors: ErrorsRecord | None = None
    profile: ProfileInput | None = None
    digest: str

    @model_serializer(mode="wrap")
    def _without_absent_profile(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_absent(handler(self), "profile")


class DegreesRecord(_Record):
    """Mesh degrees; ``expert_tp`` is the tensor degree inside an expert (1 or tp)."""

    dp: int = Field(gt=0)
    tp: int = Field(gt=0)
    pp: int = Field(gt=0)
    cp: int = Field(gt=0)
    ep: int = Field(gt=0)
    expert_tp: int = Field(default=1, gt=0)


class LayerStrategyRecord(_Record):
    """The strategy of a run of blocks, first and last included.

    ``gather_unit``: what of sharded weights is gathered at once; left out where it is the block.
    """

    layers: tuple[int, int]
    tp: int
    cp: int
    ep: int
    dp: int
    sharding: Sharding
    recompute: Recompute
    sequence_parallel: bool
    gather_unit: GatherUnit = "block"

    @model_serializer(mode="wrap")
    def _without_whole_block(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if self.gather_unit == "block":
            data.pop("gather_unit", None)
        return data


class StageRecord(_Record):
    """One virtual stage: blocks first to last (included), the ranks that run it, and what else it holds."""

    index: int
    rank: int
    layers: tuple[int, int]
    devices: tuple[int, int]
    has_embedding: bool
    has_head: bool
    layer_strategies: list[LayerStrategyRecord]


class EndsRecord(_Record):
    """The strategy of embedding and head where it is its own choice."""

    tp: int = Field(gt=0)
    cp: int = Field(gt=0)
    dp: int = Field(gt=0)
    sharding: Sharding


class DecisionRecord(_Record):
    """All choices of the plan.

    ``degrees``, ``microbatch_size`` and ``sharding`` are those of most layers when tensor degrees differ;
    ``sequence_parallel`` then holds wherever tp > 1. ``ends`` is left out when embedding and head follow
    them, ``offload`` when it is none: optimizer puts optimizer states, fp32 weights and the update on the
    host.
    """

    degrees: DegreesRecord
    sequence_parallel: bool
    sharding: Sharding
    sharding_group: ShardingGroup = "global"
    recompute: Literal["none", "selective", "full", "mixed"]
    schedule: Schedule
    virtual_stages: int = Field(gt=0)
    microbatch_size: int = Field(gt=0)
    microbatches: int = Field(gt=0)
    global_batch: int = Field(gt=0)
    stages: list[StageRecord]
    rank_order: str
    ends: EndsRecord | None = None
    offload: Offload = "none"

    @model_serializer(mode="wrap")
    def _without_absent_choices(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = _without_absent(handler(self), "ends")
        if self.offload == "none":
            data.pop("offload", None)
        return data


class StagePredictionRecord(_Record):
    """One pipeline rank: seconds of one microbatch, bytes by category at the fullest moment."""

    index: int
    forward_seconds: float
    backward_seconds: float
    memory_bytes: dict[str, float]


class PredictionRecord(_Record):
    """What the decision is predicted to cost. ``breakdown_seconds`` sums to ``step_seconds``.

    ``out_of_memory_probability``: that the true peak passes the device's capacity; null in files of versions
    that did not state it. ``host_memory_bytes`` of the fullest node and how many of them plans may use are
    left out of plans that put nothing on the host.
    """

    step_seconds: float
    step_seconds_interval: tuple[float, float]
    tokens_per_second: float
    tokens_per_second_per_gpu: float
    mfu: float
    hfu: float
    breakdown_seconds: dict[str, float]
    peak_memory_bytes: float
    peak_memory_interval: tuple[float, float]
    memory_capacity_bytes: float
    memory_limit_bytes: float
    out_of_memory_probability: float | None = None
    fullest_stage: int
    slowest_stage: int
    stages: list[StagePredictionRecord]
    host_memory_bytes: float | None = None
    host_memory_usable_bytes: float | None = None

    @model_serializer(mode="wrap")
    def _without_absent_host(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = _without_absent(handler(self), "host_memory_bytes")
        return _without_absent(data, "host_memory_usable_bytes")


class RestrictionRecord(_Record):
    """What keeping to one launcher costs, against the whole space priced on the same training stack.

    ``slower`` is the plan's seconds over those of the fastest plan of any launcher, minus 1; 0 when no
    faster plan was found. ``decision`` and ``step_seconds`` are the faster plan's, ``launchers`` those that
    can run it. ``is_complete``: whether the wider search ran to its end.
    """

    target: str
    slower: float = Field(ge=0)
    step_seconds: float = Field(gt=0)
    decision: DecisionRecord | None = None
    label: str = ""
    launchers: list[str] = []
    is_complete: bool = True


class IdleRecord(_Record):
    """A plan that may leave GPUs idle: how many there are, and what using as many as possible would take.

    ``most_gpus``: the largest number that fills whole nodes; ``most_gpus_seconds``: the best step on all of
    those, null when no plan uses them. ``counts``: the numbers of GPUs planned for or cut by their bound.
    """

    gpus_available: int = Field(gt=0)
    idle_gpus: int = Field(ge=0)
    most_gpus: int = Field(gt=0)
    most_gpus_seconds: float | None = None
    counts: list[int] = []


class SearchRecord(_Record):
    """How the plan was found and what is known about better ones.

    ``idle`` is left out unless idle GPUs were allowed.
    ``restriction`` is null for plans without a target.
    ``cpu_seconds`` is null in files: the same input gives the same bytes; the terminal shows the time.
    """

    status: Literal["proved", "gap", "heuristic", "interrupted", "estimate"]
    space: str
    lower_bound_seconds: float
    gap: float
    cpu_seconds: float | None = None
    funnel: list[dict[str, Any]]
    solver: dict[str, Any] = {}
    restriction: RestrictionRecord | None = None
    idle: IdleRecord | None = None

    @field_validator("funnel")
    @classmethod
    def _steps_are_named(cls, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for step in steps:
            words, count = (step.get("step"), step.get("reason")), step.get("candidates")
            if not all(isinstance(word, str) for word in words) or not isinstance(count, int):
                raise ValueError(f"a funnel step has step, candidates (a number) and reason, not {step}")
        return steps

    @model_serializer(mode="wrap")
    def _without_absent_idle(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_absent(handler(self), "idle")

    @classmethod
    def of_given(cls, step_seconds: float) -> SearchRecord:
        """Of a decision that was given and not searched for: its own step bounds it."""
        return cls(
            status="estimate",
            space="the given decision",
            lower_bound_seconds=step_seconds,
            gap=0.0,
            funnel=[],
        )


class Alternative(_Record):
    """A runner-up: its decision, its prediction, and what sets it apart.

    ``tied``: its predicted step time differs from the plan's by less than the noise between plans.
    ``differs``: what it does instead, in words, such as "pp 8 for 4".
    """

    decision: DecisionRecord
    prediction: PredictionRecord
    why: str
    tied: bool = False
    differs: list[str] = []


class FrontPointRecord(_Record):
    """The fastest plan found under one memory limit.

    ``head_room``: the share of the plan file's own limit that is left free; null for the end of the front,
    the plan of the smallest fullest rank. ``prediction.memory_limit_bytes`` is this point's limit;
    ``status``, ``lower_bound_seconds`` and ``gap`` are its certificate, as in ``search``.
    """

    head_room: float | None
    decision: DecisionRecord
    prediction: PredictionRecord
    status: Literal["proved", "gap", "heuristic", "interrupted"]
    lower_bound_seconds: float
    gap: float
    why: str = ""
    tied: bool = False


class SplitRecord(_Record):
    """One stage split of the plan's mesh: balanced in time, in memory, or between; bound of that mesh."""

    balance: Literal["time", "between", "memory"]
    decision: DecisionRecord
    prediction: PredictionRecord
    lower_bound_seconds: float


class FrontRecord(_Record):
    """The front between speed and memory.

    ``points`` by growing head-room, the plan itself first. ``unfit``: head-rooms asked for at which nothing
    fits. ``least_memory_bound_bytes``: no plan of the space holds less on its fullest rank; null when not
    looked for. ``splits``: the balance of the plan's own mesh, from time to memory; empty without a pipeline.
    ``is_complete``: false when stopped early.
    """

    points: list[FrontPointRecord]
    unfit: list[float] = []
    least_memory_bound_bytes: float | None = None
    splits: list[SplitRecord] = []
    is_complete: bool = True


class Plan(_Record):
    """A plan file. ``front`` is left out where none was asked for."""

    schema_version: Literal[1] = 1
    planner_version: str
    inputs: Inputs
    decision: DecisionRecord
    prediction: PredictionRecord
    search: SearchRecord
    why: list[str] = []
    alternatives: list[Alternative] = []
    front: FrontRecord | None = None
    warnings: list[str] = []

    @model_serializer(mode="wrap")
    def _without_absent_front(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_absent(handler(self), "front")

    def to_json(self) -> str:
        """The file's text: indented JSON, one trailing newline, same bytes for the same plan."""
        return self.model_dump_json(indent=2) + "\n"
