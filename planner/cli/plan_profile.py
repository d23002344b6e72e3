"""``planner plan --profile``: search measured tables, print, write."""

from __future__ import annotations

import math
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from planner.errors import InputError

if TYPE_CHECKING:
    from planner.profile_request import ProfileRequest


def plan_on_profile(
    request: ProfileRequest,
    refused: dict[str, Any],
    target: str,
    top: int,
    time_budget: float | None,
    output: str | None,
    as_json: bool,
) -> int:
    """Search and print. Raises InputError for a flag that measured tables cannot honour."""
    from planner.catalog import save_atomic
    from planner.cli.output import console, note
    from planner.profile_plan import make_profile_plan

    for flag, value in refused.items():
        if value is not None:
            raise InputError(
                f"{flag} has no meaning beside --profile: the files measure one machine, "
                f"and the search covers their whole space",
                hint=f"leave {flag} out, or plan without --profile",
            )
    started = time.process_time()
    found = make_profile_plan(request, target=target, top=top, time_budget_seconds=time_budget or math.inf)
    spent = time.process_time() - started
    if output is not None:
        save_atomic(output, found.to_json())
        note(f"wrote {output}")
    if as_json:
        sys.stdout.write(found.to_json())
        return 0
    from planner.report.terminal import print_plan

    file = shlex.quote(output or "plan.json")
    export = f"planner export {file} --to galvatron -o launch"
    following = [f"planner explain {file}", f"planner check {file}", export]
    print_plan(console(), found, cpu_seconds=spent, next_commands=following if output else [])
    return 0
