"""``planner models``: the built-in models."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o

app = typer.Typer(
    help="List and show models.\n\nExample: planner models show llama-3.1-8b",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list", help="Names, parameters and shapes.\n\nExample: planner models list")
def list_models(as_json: o.Json = False) -> None:
    """All built-in models."""
    from planner import catalog
    from planner.cli.output import console, print_json
    from planner.model.parameters import total_parameters

    rows = []
    for name in catalog.model_names():
        spec, _ = catalog.load_model(name)
        rows.append(
            {
                "name": name,
                "family": spec.family,
                "parameters": total_parameters(spec),
                "active_parameters": total_parameters(spec, active=True),
                "layers": spec.num_layers,
                "hidden_size": spec.hidden_size,
                "max_sequence_length": spec.max_sequence_length,
            }
        )
    if as_json:
        print_json(rows)
        return
    from planner.report.tables import models_table

    console().print(models_table(rows))


@app.command(
    "show", help="One model: shapes, parameters, source.\n\nExample: planner models show llama-3.1-8b"
)
def show_model(
    name: Annotated[str, typer.Argument(help="Name, our JSON, or a Hugging Face config.json.")],
    as_json: o.Json = False,
) -> None:
    """The model's description with its parameter count."""
    from planner import catalog
    from planner.cli.output import console, note, print_json
    from planner.model.parameters import total_parameters

    spec, warnings = catalog.load_model(name)
    for warning in warnings:
        note(f"warning: {warning}")
    if as_json:
        print_json(spec.model_dump(mode="json"))
        return
    from planner.report.tables import model_text

    total, active = total_parameters(spec), total_parameters(spec, active=True)
    from planner.model.graph import graph_lines

    for line in [*model_text(spec, total, active), "layers", *graph_lines(spec)]:
        console().print(line)
