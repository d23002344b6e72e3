"""The question that ``plan`` and ``estimate`` ask alike: machine, workload and limits, one option each.

A command takes a ``Question`` as one parameter; ``asked`` turns it into one command-line option a field.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from planner.cli import options as o

if TYPE_CHECKING:
    from planner.request import Request

Result = TypeVar("Result")
# Flags whose names differ from the request's fields.
RENAMED = {"network": "network_gbit"}


@dataclass(frozen=True)
class Question:
    """The answers given on the command line; None is what was not given."""

    cluster: o.ClusterName = None
    gpu: o.Gpu = None
    gpus: o.Gpus = None
    gpus_per_node: o.GpusPerNode = None
    network: o.Network = None
    seq_len: o.SeqLen = None
    global_batch: o.GlobalBatch = None
    precision: o.PrecisionName = None
    optimizer: o.Optimizer = None
    attention: o.AttentionKernel = None
    memory_limit_gib: o.MemoryLimit = None
    oom_risk: o.OomRisk = None
    tokens: o.Tokens = None
    calibration: o.Calibration = None
    host_memory_gib: o.HostMemory = None

    def request(self, model: str, *, has_defaults: bool = True) -> Request:
        """The request. Without defaults optimizer and attention stay None: a file may state them."""
        from planner.request import Request

        given = {RENAMED.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}
        if has_defaults:
            given = {name: value for name, value in given.items() if value is not None}
        return Request(model=model, **given)


def asked(command: Callable[..., Result]) -> Callable[..., Result]:
    """``command`` with its ``question`` parameter spelled out, field by field, for Typer to read."""
    hints = get_type_hints(command, include_extras=True)
    inner = get_type_hints(Question, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if hints[parameter.name] is Question:
            parameters += [_keyword(f.name, f.default, inner[f.name]) for f in fields(Question)]
        else:
            parameters.append(_keyword(parameter.name, parameter.default, hints[parameter.name]))

    @functools.wraps(command)
    def called(**values: Any) -> Result:
        answers = {f.name: values.pop(f.name) for f in fields(Question)}
        return command(question=Question(**answers), **values)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=annotation,
    )
