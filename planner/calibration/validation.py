"""Predicted against measured: every row priced, errors by source and GPU, ranking inside groups."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from planner.calibration.case import Case, Unsupported
from planner.calibration.case_cluster import case_cluster
from planner.calibration.case_model import SAILOR, case_model
from planner.calibration.case_pricing import PricedCase, Refused, price_cases
from planner.calibration.fitted import site_key
from planner.calibration.ranking import ranking_by_group
from planner.cluster.spec import DeviceSpec
from planner.cluster.topology import Cluster
from planner.cost.constants import Constants, default_constants
from planner.cost.model import CostModel
from planner.cost.stack import STACKS
from planner.cost.step import Prediction
from planner.documents import validate
from planner.errors import InputError
from planner.strategy.candidates import Problem
from planner.units import GIB
from planner.workload import Workload

# What a memory figure counts: allocated by tensors, reserved by the allocator, used on the device. A row may
# say so in a column ``memory_kind``; for the published sources it is known by the letters of the row id
# (BigScience read nvidia-smi, torchtitan prints the allocator's reservation). "GB" whose counter the source
# does not name (zbp, slr, prm, inm) is scored as allocated, but apart.
MEMORY_KINDS = ("allocated", "reserved", "device", "unnamed")
MEMORY_KIND = {"bsc": "device", "ttn": "reserved", "zbp": "unnamed", "slr": "device", "prm": "unnamed"}
MEMORY_KIND["inm"] = "unnamed"
RESERVED_TOO = re.compile(r"\(reserved (\d+(?:\.\d+)?) GiB\)")
UNFUSED_STACKS = ("megatron-deepspeed", "mist")
UNFUSED_GENERATIONS = ("volta", "turing")
EAGER = re.compile(r"\beager\b")
# AMP's launch script (ds_pretrain_gpt2_pipe.sh) asks for --fp16 and for no fusion; Sailor's (run_opt.slurm)
# for neither --fp16 nor --bf16.
AMP = re.compile(r"DachengLi1/AMP\b")
NEMO = re.compile(r"\bnemo\b|megatron-bridge|dgxc-benchmarking", re.IGNORECASE)
STACK_ALIASES = {"": "megatron", "megatron-core": "megatron"}

ConstantsFor = Callable[[DeviceSpec, str, str], Constants]


@dataclass
class RowResult:
    """One row: its prediction, or the reason there is none. Seconds and GiB."""

    case: Case
    status: str
    message: str = ""
    predicted_step_s: float | None = None
    predicted_peak_mem_gib: float | None = None
    device: str = ""
    generation: str = ""
    stack: str = ""
    site: str = ""
    notes: list[str] = field(default_factory=list)
    peaks_gib: dict[str, float] = field(default_factory=dict)

    @property
    def measured_step_s(self) -> float | None:
        return _known(self.case, "measured_step_s")

    def time_error(self) -> float | None:
        """(predicted - measured) / measured of the step time, None when either is missing."""
        measured = self.measured_step_s
        if not measured or self.predicted_step_s is None or is_doubtful(self.case):
            return None
        return self.predicted_step_s / measured - 1.0

    def memory_error(self) -> float | None:
        """The same of peak memory, of the kind the row measured."""
        measured = _known(self.case, "measured_peak_mem_gb")
        if not measured or is_doubtful(self.case) or self.predicted_peak_mem_gib is None:
            return None
        return self.predicted_peak_mem_gib / measured - 1.0

    def memory_errors(self) -> dict[str, float]:
        """The same by kind; a row whose notes print the reservation too is scored on both."""
        error = self.memory_error()
        found = {} if error is None else {memory_kind(self.case): error}
        reserved = RESERVED_TOO.search(self.case.text("notes"))
        if reserved and "reserved" in self.peaks_gib:
            found["reserved"] = self.peaks_gib["reserved"] / float(reserved[1]) - 1.0
        return found

    def sim_error(self) -> float | None:
        """(simulated - measured) / measured of the source's own simulator, None when it gives no figure."""
        measured, simulated = self.measured_step_s, _known(self.case, "sim_by_source_step_s")
        return simulated / measured - 1.0 if measured and simulated else None

    def as_dict(self) -> dict[str, Any]:
        """The record of ``validate --json``."""
        return {
            "id": self.case.id,
            "status": self.status,
            "predicted_step_s": self.predicted_step_s,
            "predicted_peak_mem_gib": self.predicted_peak_mem_gib,
            "measured_step_s": _known(self.case, "measured_step_s"),
            "measured_peak_mem_gib": _known(self.case, "measured_peak_mem_gb"),
            "memory_kind": memory_kind(self.case) if self.status == "ok" else None,
            "message": self.message,
            "assumed": self.notes,
            "is_scored": self.status == "ok" and not is_doubtful(self.case),
        }


def is_doubtful(case: Case) -> bool:
    """Rows that are priced but neither fitted nor judged: marked suspect, or their layer count is a guess."""
    notes = case.text("notes")
    return "SUSPECT" in notes or "layer count not stated" in notes


def _known(case: Case, name: str) -> float | None:
    """A cell as a number where it is one: rows that are refused may hold anything."""
    try:
        return case.number(name)
    except Unsupported:
        return None


def memory_kind(case: Case) -> str:
    """What the row's memory figure counts. Raises Unsupported for a kind that is none of MEMORY_KINDS."""
    stated = case.text("memory_kind").lower()
    if stated and stated not in MEMORY_KINDS:
        raise Unsupported(f"memory_kind {stated!r} is none of {', '.join(MEMORY_KINDS)}")
    return stated or MEMORY_KIND.get(case.source, "allocated")


@dataclass(frozen=True)
class Summary:
    """Errors of one group of rows; shares, not per cent. None where there is nothing to score.

    memory_mape: only where all rows measured one kind; memory_by_kind: {rows, mape, bias} of each.
    ranking_groups: groups of comparable rows behind kendall_tau and top1_regret; kendall_tau_apart: tau over
    plans further apart than repeated runs are, in ranking_groups_apart of them. sim_*: the source's own
    simulator on the rows it gives (and that are priced here), own_* this project's error on the same rows.
    """

    source: str
    rows: int
    priced: int
    time_mape: float | None
    time_median_ape: float | None
    time_bias: float | None
    time_p90: float | None
    memory_mape: float | None
    memory_kind: str
    kendall_tau: float | None
    kendall_tau_apart: float | None
    ranking_groups_apart: int
    top1_regret: float | None
    ranking_groups: int
    memory_by_kind: dict[str, dict[str, float]]
    sim_rows: int
    sim_mape: float | None
    own_mape: float | None
    sim_median_ape: float | None
    own_median_ape: float | None

    def as_dict(self) -> dict[str, Any]:
        """The record of ``validate --json``."""
        return dict(self.__dict__)


def validate_cases(cases: list[Case], constants_for: ConstantsFor | None = None) -> list[RowResult]:
    """Every case priced, in order."""
    chosen = constants_for or (lambda device, stack, site: default_constants(device))
    return [_result(priced) for priced in price_cases(cases, lambda case: case_cost_model(case, chosen))]


def _result(priced: PricedCase | Refused) -> RowResult:
    case = priced.case
    try:
        if isinstance(priced, Refused):
            raise priced.reason
        model, prediction = priced.model, priced.prediction
        case.number("measured_step_s")
        case.number("measured_peak_mem_gb")
        case.number("sim_by_source_step_s")
        peaks = _peaks(model, prediction)
        kind = memory_kind(case)
    except Unsupported as reason:
        return RowResult(case, "unsupported", str(reason))
    except InputError as error:
        return RowResult(case, "invalid", "; ".join(filter(None, (str(error), error.hint))))
    return RowResult(
        case,
        "ok",
        predicted_step_s=prediction.step_seconds,
        predicted_peak_mem_gib=peaks[kind],
        device=model.problem.cluster.device.name,
        generation=model.problem.cluster.device.generation,
        stack=model.stack.fitted_as,
        site=site_key(case.source, model.problem.cluster.device.generation),
        notes=list(dict.fromkeys(case.notes)),
        peaks_gib=peaks,
    )


def _peaks(model: CostModel, prediction: Prediction) -> dict[str, float]:
    """The predicted peak as each kind of counter would read it, GiB.

    allocated: tensors alone; reserved: with the allocator's slack; device: with the driver's reserve too.
    """
    stage = prediction.stages[prediction.fullest_stage].memory_bytes
    slack = 1.0 + model.constants.allocator_slack
    tensors = stage["parameters"] + stage["gradients"] + stage["optimizer"]
    moving = stage["activations"] + stage["buffers"]
    allocated = (tensors + moving / slack) / GIB
    return {
        "allocated": allocated,
        "reserved": (tensors + moving) / GIB,
        "device": stage["total"] / GIB,
        "unnamed": allocated,
    }


def case_cost_model(case: Case, constants_for: ConstantsFor) -> CostModel:
    """The cost model of a row's model, machine, workload and stack."""
    sequence = case.count("seq_len")
    cluster = case_cluster(case)
    precision = case.text("precision") or _default_precision(case, cluster)
    attention = case.text("attention") or _default_attention(case, cluster)
    stated = {
        "sequence_length": sequence,
        "global_batch": case.count("global_batch"),
        "precision": precision,
        "attention": attention,
    }
    workload = validate(Workload, stated, "")
    spec, chain = case_model(case, sequence)
    problem = Problem(spec, cluster, workload, cluster.device.memory_bytes)
    stack = case_stack(case)
    fitted = STACKS[stack].fitted_as if stack in STACKS else stack
    site = site_key(case.source, cluster.device.generation)
    return CostModel.of(problem, constants_for(cluster.device, fitted, site), stack, chain)


def case_stack(case: Case) -> str:
    """The stack profile of a row: that of its ``stack``, or the one its notes make of it."""
    stack = STACK_ALIASES.get(case.text("stack"), case.text("stack"))
    if stack == "megatron" and "comm overlap off" in case.text("notes"):
        return "megatron-serial"
    if stack == "megatron" and NEMO.search(case.text("source") + case.text("notes")):
        return "nemo"
    if stack == "megatron" and case.text("notes").startswith("MegaScale"):
        return "megascale"
    if stack == "torchtitan" and EAGER.search(case.text("notes")):
        return "torchtitan-eager"
    if stack == "megatron-deepspeed" and AMP.match(case.text("source")):
        return "megatron-deepspeed-plain"
    if stack == "megatron-deepspeed" and SAILOR.match(case.text("source")):
        return "megatron-deepspeed-fp32"
    if stack == "megatron-deepspeed" and "Jean Zay" in case.text("notes"):
        return "megatron-deepspeed-blocking"
    return stack


def _default_attention(case: Case, cluster: Cluster) -> str:
    """Unfused on stacks and GPUs from before flash attention was the default, flash elsewhere."""
    generation, stack = cluster.device.generation, case.text("stack")
    is_old = stack in UNFUSED_STACKS or generation in UNFUSED_GENERATIONS
    is_old = is_old or (stack == "megatron" and generation == "ampere")
    is_old = is_old and not case.text("notes").startswith("MegaScale")
    chosen = "unfused" if is_old else "flash"
    case.assume(f"attention kernel not printed: {chosen}")
    return chosen


def _default_precision(case: Case, cluster: Cluster) -> str:
    able = {str(name) for name in cluster.device.peak_tflop_per_s}
    chosen = "bf16" if "bf16" in able else "fp16"
    case.assume(f"precision not printed: {chosen}")
    return chosen


def summarise(results: Iterable[RowResult], by: Callable[[RowResult], str]) -> list[Summary]:
    """One summary a group, groups in order of first appearance."""
    groups: dict[str, list[RowResult]] = defaultdict(list)
    for result in results:
        groups[by(result)].append(result)
    return [summary(name, rows) for name, rows in groups.items()]


def summary(name: str, rows: list[RowResult]) -> Summary:
    """MAPE, median, bias and p90 of time; memory by kind; ranking over groups of comparable rows."""
    time = [e for r in rows if (e := r.time_error()) is not None]
    absolute = sorted(abs(e) for e in time)
    memory: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for kind, error in row.memory_errors().items():
            memory[kind].append(error)
    own_kinds = {memory_kind(r.case) for r in rows if r.memory_error() is not None}
    one = next(iter(own_kinds)) if len(own_kinds) == 1 else ""
    taus, taus_apart, regrets = ranking_by_group(rows)
    pairs = [
        (abs(ours), abs(theirs))
        for r in rows
        if (ours := r.time_error()) is not None and (theirs := r.sim_error()) is not None
    ]
    own, sim = [ours for ours, _ in pairs], [theirs for _, theirs in pairs]
    return Summary(
        source=name,
        rows=len(rows),
        priced=sum(r.status == "ok" for r in rows),
        time_mape=_mean(absolute),
        time_median_ape=median(absolute) if absolute else None,
        time_bias=_mean(time),
        time_p90=absolute[math.ceil(0.9 * len(absolute)) - 1] if absolute else None,
        memory_mape=_mean([abs(e) for e in memory[one]]) if one else None,
        memory_kind="+".join(sorted(own_kinds)),
        kendall_tau=_mean(taus),
        kendall_tau_apart=_mean(taus_apart),
        ranking_groups_apart=len(taus_apart),
        top1_regret=_mean(regrets),
        ranking_groups=len(regrets),
        memory_by_kind={kind: _memory_errors(memory[kind]) for kind in MEMORY_KINDS if memory[kind]},
        sim_rows=len(pairs),
        sim_mape=_mean(sim),
        own_mape=_mean(own),
        sim_median_ape=median(sim) if sim else None,
        own_median_ape=median(own) if own else None,
    )


def _memory_errors(errors: list[float]) -> dict[str, float]:
    """Rows, mean absolute error and bias of one kind of memory figure."""
    count = len(errors)
    return {"rows": count, "mape": sum(abs(e) for e in errors) / count, "bias": sum(errors) / count}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
