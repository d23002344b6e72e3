"""run.sh for launchers whose configuration is one file: torchrun around a command, and its SLURM job."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence

from planner.launchers.megatron_groups import nodes
from planner.launchers.scripts import DEFAULT_PORT, Job, comment, sbatch_script
from planner.plan_file.schema import Plan
from planner.units import format_bytes, format_seconds


def stamp(plan: Plan, launcher: str, written_for: str, verified_by: str) -> dict[str, str | int]:
    """First fields of a launcher's JSON summary: who wrote it, for what, of which plan, for which machine."""
    num_nodes, per_node = nodes(plan)
    return {
        "launcher": launcher,
        "written_for": written_for,
        "planner_version": plan.planner_version,
        "plan_digest": plan.inputs.digest,
        "verified_by": verified_by,
        "nodes": num_nodes,
        "gpus_per_node": per_node,
    }


def header(
    plan: Plan, written_for: str, verified_by: str, notes: Sequence[str], *, what: str = "Written"
) -> list[str]:
    """What a written file says of itself: model, machine, plan, prediction, digest, checks, notes.

    ``what`` was written for the launcher's version: the file, or its flags.
    """
    q, p, cluster = plan.decision, plan.prediction, plan.inputs.cluster
    degrees: Mapping[str, int] = q.degrees.model_dump()
    shown = " ".join(f"{name}={size}" for name, size in degrees.items())
    return [
        f"{plan.inputs.model.name} on {cluster.gpus} x {cluster.device.name} ({cluster.profile.name})",
        f"Plan: {shown}, {q.schedule}, {q.virtual_stages} virtual stages a rank, "
        f"{q.microbatches} microbatches of {q.microbatch_size}",
        f"Predicted step {format_seconds(p.step_seconds)}, peak memory {format_bytes(p.peak_memory_bytes)}",
        f"Plan digest {plan.inputs.digest}, planner {plan.planner_version}",
        f"{what} for {written_for}",
        f"Verified by: {verified_by}",
        *notes,
    ]


def comments(lines: Sequence[str], width: int = 108) -> str:
    """``lines`` as Python or shell comments, wrapped; nothing in them can end the comment."""
    wrapped = (textwrap.wrap(comment(line), width, subsequent_indent="#   ") for line in lines)
    return "\n".join(row for rows in wrapped for row in rows)


def run_script(plan: Plan, lines: Sequence[str], setup: Sequence[str], command: str) -> str:
    """run.sh: run it once on every node. ``command`` follows torchrun's options, then the script's arguments.

    ``lines`` are comments, ``setup`` shell lines before the launch. Rendezvous is static, so that ranks
    follow NODE_RANK and with it the plan's placement.
    """
    num_nodes, per_node = nodes(plan)
    text = ["#!/usr/bin/env bash", comments(lines), "set -euo pipefail", ""]
    text.append('HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"')
    if num_nodes > 1:
        text += [
            ': "${MASTER_ADDR:?set it to the host name of node 0}"',
            'NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-}}"',
            f': "${{NODE_RANK:?set it to the index of this node, 0 to {num_nodes - 1}}}"',
        ]
    else:
        text += ['MASTER_ADDR="${MASTER_ADDR:-localhost}"', 'NODE_RANK="${NODE_RANK:-0}"']
    text += [
        f'MASTER_PORT="${{MASTER_PORT:-{DEFAULT_PORT}}}"',
        *setup,
        'export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"',
        "",
        "exec torchrun \\",
        f"  --nnodes {num_nodes} --nproc-per-node {per_node} \\",
        '  --node-rank "$NODE_RANK" --rdzv-backend static \\',
        '  --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" \\',
        f'  {command} "$@"',
    ]
    return "\n".join(text) + "\n"


def run_job(plan: Plan, lines: Sequence[str]) -> str:
    """run.sbatch: one task a node, each running run.sh."""
    num_nodes, per_node = nodes(plan)
    job = Job(
        name=plan.inputs.model.name,
        header=lines,
        num_nodes=num_nodes,
        ranks_per_node=per_node,
        environment={},
        flags={},
        needs_rotary_base=False,
        train_iters=None,
    )
    return sbatch_script(job, script="run.sh")


def machine_size(script: str) -> tuple[int, int]:
    """(nodes, ranks per node) that a run.sh hands to torchrun. Raises ValueError without the options."""
    words = shlex.split(script, comments=True)
    return int(words[words.index("--nnodes") + 1]), int(words[words.index("--nproc-per-node") + 1])
