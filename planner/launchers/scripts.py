"""Shell scripts around a training command: torchrun on every node, and a SLURM job that starts it.

Rendezvous is static: torchrun's c10d rendezvous numbers nodes by host name and ignores --node-rank, which
would undo the plan's placement of ranks.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DEFAULT_PORT = 29500
# What the memory model's allocator slack assumes; a value set outside stays. Older PyTorch knows this name
# only, 2.13 still reads it.
EXPANDABLE_SEGMENTS = 'export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"'


@dataclass(frozen=True)
class Job:
    """A training command and what it runs on.

    environment: value, or None for a variable that must not be set. train_iters: None when unknown, then
    the script asks for it.
    """

    name: str
    header: Sequence[str]
    num_nodes: int
    ranks_per_node: int
    environment: Mapping[str, str | None]
    flags: Mapping[str, Sequence[str]]
    needs_rotary_base: bool
    train_iters: int | None


def comment(text: str) -> str:
    """``text`` as one comment line: control characters and line ends become spaces."""
    flat = "".join(char if char.isprintable() else " " for char in text)
    return f"# {' '.join(flat.split())}"


def flag_line(name: str, values: Sequence[str]) -> str:
    """One flag with its values, quoted for the shell."""
    return " ".join([name, *(shlex.quote(value) for value in values)])


def train_script(job: Job) -> str:
    """train.sh: run it once on every node. Extra arguments go to pretrain_gpt.py, after the plan's flags."""
    lines = ["#!/usr/bin/env bash", *map(comment, job.header), "set -euo pipefail", ""]
    lines += _required(job)
    lines += ["", EXPANDABLE_SEGMENTS, *_environment(job)]
    lines += ["MEGATRON_ARGS=(", *(f"  {flag_line(k, v)}" for k, v in job.flags.items()), ")", ""]
    lines += _data(job)
    lines += [
        "",
        "exec torchrun \\",
        f"  --nnodes {job.num_nodes} --nproc-per-node {job.ranks_per_node} \\",
        '  --node-rank "$NODE_RANK" --rdzv-backend static \\',
        '  --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" \\',
        '  "$MEGATRON_LM/pretrain_gpt.py" "${MEGATRON_ARGS[@]}" "${RUN_ARGS[@]}" "$@"',
    ]
    return "\n".join(lines) + "\n"


def _required(job: Job) -> list[str]:
    lines = [': "${MEGATRON_LM:?set it to a Megatron-LM checkout (the folder of pretrain_gpt.py)}"']
    lines.append(': "${LEARNING_RATE:?set it to the peak learning rate}"')
    if job.train_iters is None:
        lines.append(': "${TRAIN_ITERS:?set it to the number of optimizer steps}"')
    else:
        lines.append(f'TRAIN_ITERS="${{TRAIN_ITERS:-{job.train_iters}}}"')
    if job.needs_rotary_base:
        lines.append(': "${ROTARY_BASE:?set it to the rotary base (rope_theta in the config.json)}"')
    if job.num_nodes > 1:
        lines += [
            ': "${MASTER_ADDR:?set it to the host name of node 0}"',
            'NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-}}"',
            f': "${{NODE_RANK:?set it to the index of this node, 0 to {job.num_nodes - 1}}}"',
        ]
    else:
        lines += ['MASTER_ADDR="${MASTER_ADDR:-localhost}"', 'NODE_RANK="${NODE_RANK:-0}"']
    lines.append(f'MASTER_PORT="${{MASTER_PORT:-{DEFAULT_PORT}}}"')
    return lines


def _environment(job: Job) -> list[str]:
    lines = []
    for name, value in job.environment.items():
        lines.append(f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}")
    return [*lines, ""]


def _data(job: Job) -> list[str]:
    lines = [
        "# DATA_PATH: prefixes (and weights), separated by spaces. MOCK_DATA=1: random tokens, no files.",
        'RUN_ARGS=(--lr "$LEARNING_RATE" --train-iters "$TRAIN_ITERS")',
    ]
    if job.needs_rotary_base:
        lines.append('RUN_ARGS+=(--rotary-base "$ROTARY_BASE")')
    return [
        *lines,
        'if [[ "${MOCK_DATA:-0}" == 1 ]]; then',
        "  RUN_ARGS+=(--mock-data --tokenizer-type NullTokenizer)",
        "else",
        '  : "${DATA_PATH:?set it to the data prefixes, or MOCK_DATA=1}"',
        '  : "${TOKENIZER:?set it to a tokenizer folder or file, or MOCK_DATA=1}"',
        '  read -r -a DATA_PREFIXES <<< "$DATA_PATH"',
        '  RUN_ARGS+=(--data-path "${DATA_PREFIXES[@]}")',
        '  RUN_ARGS+=(--tokenizer-type "${TOKENIZER_TYPE:-HuggingFaceTokenizer}")',
        '  RUN_ARGS+=(--tokenizer-model "$TOKENIZER")',
        "fi",
    ]


def sbatch_script(job: Job, script: str = "train.sh") -> str:
    """A SLURM job: submit it from the folder of ``script``. One task a node; tasks follow the node list."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", job.name).strip("-") or "train"
    lines = [
        "#!/usr/bin/env bash",
        f"#SBATCH --job-name={name}",
        f"#SBATCH --nodes={job.num_nodes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={job.ranks_per_node}",
        "#SBATCH --exclusive",
        *map(comment, job.header),
        "set -euo pipefail",
        "",
        'PLAN_DIR="${PLAN_DIR:-${SLURM_SUBMIT_DIR:?submit this file with sbatch}}"',
        'HOSTS="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"',
        "# Node 0 of the rank order is the first of the node list; block distribution keeps that order.",
        "export MASTER_ADDR=\"${HOSTS%%$'\\n'*}\"",
        f'export MASTER_PORT="${{MASTER_PORT:-{DEFAULT_PORT}}}"',
        "",
        "# No CPU binding of the one task: it is the parent of all ranks of the node.",
        "srun --ntasks-per-node=1 --distribution=block --cpu-bind=none --kill-on-bad-exit=1 \\",
        f'  bash "$PLAN_DIR/{script}" "$@"',
    ]
    return "\n".join(lines) + "\n"
