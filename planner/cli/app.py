"""The ``planner`` command: one module a command, errors to exit codes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from planner import __version__
from planner.cli import (
    calibrate_command,
    check_command,
    compare_command,
    diff_command,
    estimate_command,
    explain_command,
    export_command,
    hardware_command,
    models_command,
    plan_command,
    report_command,
    schema_command,
    trace_command,
    validate_command,
)
from planner.cli.output import invocation, note, print_error
from planner.errors import EXIT_BUG, InputError, Interrupted, PlannerError

Result = TypeVar("Result")

app = typer.Typer(
    name="planner",
    help="Find the best hybrid-parallel training plan for a model on a GPU cluster. No GPU is needed.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _interruptible(command: Callable[..., Result]) -> Callable[..., Result]:
    """``command``, with a Ctrl-C it has no answer to as an error: Typer would leave without a word."""

    @functools.wraps(command)
    def called(*given: object, **named: object) -> Result:
        try:
            return command(*given, **named)
        except KeyboardInterrupt:
            has_budget = "time_budget" in named
            hint = "--time-budget SECONDS takes the best plan found by then" if has_budget else ""
            raise Interrupted("interrupted before there was anything to print", hint=hint) from None

    return called


# Command -> what it does, on one line of the list of commands.
COMMANDS = {
    "plan": (plan_command, "Find the best plan and say why."),
    "estimate": (estimate_command, "Price your own degrees or a launcher's file, no search."),
    "explain": (explain_command, "Where seconds and bytes go; why not another choice."),
    "compare": (compare_command, "Plan again at every combination of values: a what-if table."),
    "export": (export_command, "Write the files a launcher needs to run a plan."),
    "check": (check_command, "Check a plan or a launcher's file against the rules."),
    "diff": (diff_command, "Compare two plans: what differs, decision first."),
    "trace": (trace_command, "Write the pipeline timeline of a step for Perfetto."),
    "report": (report_command, "Write plans as one self-contained HTML page."),
    "validate": (validate_command, "Price a table of measured runs and score the predictions."),
    "calibrate": (calibrate_command, "Fit the cost model's constants to a table of measured runs."),
    "schema": (schema_command, "Print the JSON Schema of a file format."),
}
for _name, (_module, _short) in COMMANDS.items():
    _command = _interruptible(getattr(_module, _name))
    app.command(_name, help=_module.HELP, short_help=_short)(_command)
app.add_typer(models_command.app, name="models")
app.add_typer(hardware_command.app, name="hardware")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"planner {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code (see errors.py); never a traceback on bad input."""
    argv = sys.argv[1:] if arguments is None else arguments
    sys.exit(run(argv))


def run(argv: list[str]) -> int:
    """Exit code of one invocation."""
    as_json = "--json" in argv
    invocation[:] = argv
    argv = argv or ["--help"]
    try:
        result = app(args=argv, prog_name="planner", standalone_mode=False)
        sys.stdout.flush()
        return int(result) if isinstance(result, int) else 0
    except PlannerError as error:
        print_error(error, as_json=as_json)
        return error.exit_code
    except typer.TyperException as error:
        message = _usage_message(error)
        context = getattr(error, "ctx", None)
        named = f"planner {argv[0]}" if not argv[0].startswith("-") else "planner"
        command = context.command_path if context is not None else named
        print_error(InputError(message, hint=f"see {command} --help"), as_json=as_json)
        return InputError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print_error(Interrupted("interrupted"), as_json=as_json)
        return Interrupted.exit_code
    except (BrokenPipeError, SystemExit):
        # The reader went away. Typer leaves with exit 1 then, which says here that a difference was found.
        _silence_stdout()
        return 0
    except Exception as error:
        import traceback

        traceback.print_exc()
        note(
            f"bug in planner {__version__}: {type(error).__name__}. Please report it with the command above."
        )
        return EXIT_BUG


def _usage_message(error: typer.TyperException) -> str:
    """Typer's own words for a usage error, without its leading label."""
    words = getattr(error, "format_message", None)
    return str(words()) if callable(words) else str(error)


def _silence_stdout() -> None:
    """The reader went away: do not fail again when Python flushes stdout at exit."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
