"""``planner schema``: JSON Schema of the file formats."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o
from planner.errors import UnknownName

HELP = """Print the JSON Schema of a file format: plan, model, cluster, device or workload.

Example: planner schema plan
"""


def schema(
    kind: Annotated[str, typer.Argument(help="plan, model, cluster, device or workload")],
    as_json: o.Json = False,
) -> None:
    """The schema on stdout (always JSON)."""
    from pydantic import BaseModel

    from planner.cli.output import print_json
    from planner.cluster.spec import ClusterProfile, DeviceSpec
    from planner.model.spec import ModelSpec
    from planner.plan_file.schema import Plan
    from planner.workload import Workload

    kinds: dict[str, type[BaseModel]] = {
        "plan": Plan,
        "model": ModelSpec,
        "cluster": ClusterProfile,
        "device": DeviceSpec,
        "workload": Workload,
    }
    if kind not in kinds:
        raise UnknownName("schema", kind, kinds, hint=f"one of {', '.join(kinds)}")
    print_json(kinds[kind].model_json_schema())
