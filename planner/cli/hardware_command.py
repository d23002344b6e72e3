"""``planner hardware``: the GPUs and machines shipped."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o

app = typer.Typer(
    help="List and show GPUs and machines.\n\nExample: planner hardware show dgx-h100",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list", help="GPUs and cluster profiles.\n\nExample: planner hardware list")
def list_hardware(as_json: o.Json = False) -> None:
    """All devices and profiles."""
    from planner import catalog
    from planner.cli.output import console, print_json

    devices = [catalog.load_device(name) for name in catalog.device_names()]
    profiles = [catalog.load_profile(name) for name in catalog.profile_names()]
    if as_json:
        print_json(
            {
                "gpus": [d.model_dump(mode="json") for d in devices],
                "clusters": [p.model_dump(mode="json") for p in profiles],
            }
        )
        return
    from planner.report.tables import devices_table, profiles_table

    out = console()
    out.print(devices_table(devices))
    out.print()
    out.print(profiles_table(profiles))


@app.command("show", help="One GPU or machine, with sources.\n\nExample: planner hardware show h100-sxm")
def show_hardware(
    name: Annotated[str, typer.Argument(help="GPU or profile: name or file.")],
    as_json: o.Json = False,
) -> None:
    """Every number with its basis and source."""
    from planner import catalog
    from planner.cli.output import console, print_json
    from planner.cluster.spec import ClusterProfile, DeviceSpec
    from planner.errors import UnknownName

    spec: DeviceSpec | ClusterProfile
    if catalog.is_cluster_document(name):
        spec = catalog.load_profile(name)
    else:
        try:
            spec = catalog.load_device(name)
        except UnknownName:
            try:
                spec = catalog.load_profile(name)
            except UnknownName:
                known = [*catalog.device_names(), *catalog.profile_names()]
                hint = "see planner hardware list"
                raise UnknownName("GPU or machine", name, known, hint=hint) from None
    if as_json:
        print_json(spec.model_dump(mode="json"))
        return
    from planner.report.tables import device_lines, profile_lines

    lines = device_lines(spec) if isinstance(spec, DeviceSpec) else profile_lines(spec)
    out = console()
    for line in lines:
        out.print(line)
