"""Native PyTorch: a plan as one training script, run by torchrun; no framework beside torch.

The script's text is ``pytorch_train.py.txt``; the plan goes into its header as constants. Choices of this
exporter:

- FSDP2 does the data axis in every mode, on a mesh of replicas times shards. none: no shards, reduced
  after the last microbatch. optimizer: weights gathered once a step, gradients whole until the last
  microbatch. gradients: reduced after every microbatch. parameters: weights dropped after each use too.
- FSDP2 under a pipeline keeps whole gradients until the last microbatch whatever it is asked for. For
  gradients and parameters the script hides the sharding from the pipeline, so that they are reduced
  after every microbatch, as the plan prices it.
- Recompute is chosen per layer. selective: the norms run again, not the projections behind them; with
  unfused attention, the scores.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from planner.launchers.base import Reason, broken, require_expressible
from planner.launchers.megatron_groups import data_ranks, islands
from planner.launchers.pytorch_rules import PYTORCH_RULES, dense_blocks
from planner.launchers.run_scripts import comments, header, run_job, run_script
from planner.launchers.torch_rules import FILLED_SEARCH, SCHEDULE_NAMES, TIED_SEARCH
from planner.model.spec import Attention, FeedForward
from planner.plan_file.schema import Plan
from planner.strategy.limits import Limits

PYTORCH_LIMITS = Limits(
    target="pytorch",
    schedules=("1f1b", "interleaved", "gpipe", "zb-h1", "zb-v"),
    has_layer_sharding=False,
    max_cp=1,
    max_ep=1,
    kv_heads_by_tp=True,
    stack="pytorch",
    gather_units=("block", "part", "matrix"),
    rules=(TIED_SEARCH, FILLED_SEARCH),
)
WRITTEN_FOR = "PyTorch 2.13"
TEMPLATE = "pytorch_train.py.txt"
DROPOUT = 0.1


class PyTorch:
    """The native PyTorch launcher."""

    name = "pytorch"
    limits = PYTORCH_LIMITS
    verified_by = (
        "own rule table; the script's constants read back to the plan's mesh, microbatches, stages and "
        "recompute. The script trained small models on CPU under every kind of plan with equal losses; "
        "this plan was not run"
    )

    def reasons(self, plan: Plan) -> list[Reason]:
        """Every rule of the model and of the strategy that the plan breaks."""
        return broken(PYTORCH_RULES, plan)

    def export(self, plan: Plan) -> dict[str, str]:
        """train.py, run.sh and run.sbatch. Raises UnsupportedByTarget with all reasons."""
        require_expressible(self.name, self.reasons(plan))
        lines = header(plan, WRITTEN_FOR, self.verified_by, notes(plan))
        return {
            "train.py": train_script(plan, lines),
            "run.sh": run_script(plan, lines, ["export OMP_NUM_THREADS=1"], '"$HERE/train.py"'),
            "run.sbatch": run_job(plan, lines),
        }


PYTORCH = PyTorch()


def train_script(plan: Plan, lines: list[str]) -> str:
    """The training script: the template with the plan's constants. ``lines`` are comments in front."""
    template = resources.files("planner.launchers").joinpath(TEMPLATE).read_text("utf-8")
    values = "\n".join(f"{name} = {_literal(value)}" for name, value in constants(plan).items())
    return template.replace("@PLAN@", f"{comments(lines)}\n\n{values}")


def constants(plan: Plan) -> dict[str, Any]:
    """The script's header: names and values that follow from an expressible plan."""
    q, workload = plan.decision, plan.inputs.workload
    replicas, shards = data_mesh(plan)
    d = q.degrees
    return {
        "MODEL": model_constants(plan),
        "MESH": {"pp": d.pp, "dp_replicate": replicas, "dp_shard": shards, "tp": d.tp},
        "STAGES": [list(stage.layers) for stage in q.stages],
        "RECOMPUTE": [
            run.recompute
            for stage in q.stages
            for run in stage.layer_strategies
            for _ in range(run.layers[0], run.layers[1] + 1)
        ],
        "GATHER_UNITS": [
            run.gather_unit
            for stage in q.stages
            for run in stage.layer_strategies
            for _ in range(run.layers[0], run.layers[1] + 1)
        ],
        "SHARDING": q.sharding,
        "SEQUENCE_PARALLEL": q.sequence_parallel and d.tp > 1,
        "SCHEDULE": SCHEDULE_NAMES[q.schedule],
        "VIRTUAL_STAGES": q.virtual_stages,
        "MICROBATCH_SIZE": q.microbatch_size,
        "MICROBATCHES": q.microbatches,
        "GLOBAL_BATCH": q.global_batch,
        "SEQUENCE_LENGTH": workload.sequence_length,
        "OPTIMIZER": workload.optimizer,
        "PRECISION": workload.precision,
    }


def data_mesh(plan: Plan) -> tuple[int, int]:
    """(replicas, shards) of the dp cp data ranks: all replicas, all shards, or shards inside an island."""
    ranks = data_ranks(plan)
    if plan.decision.sharding == "none":
        return ranks, 1
    if plan.decision.sharding_group == "global":
        return 1, ranks
    outer = islands(plan)[0]
    return outer, ranks // outer


def model_constants(plan: Plan) -> dict[str, Any]:
    """The model's shape, for a plan that passed the rules. Raises TypeError for other blocks."""
    model, block = plan.inputs.model, dense_blocks(plan)[0]
    attention, ff = block.attention, block.feed_forward
    if not isinstance(attention, Attention) or not isinstance(ff, FeedForward):
        raise TypeError(f"{model.name} has blocks the script does not build")
    positions = model.stacks[0].embedding.num_positions
    return {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_heads": attention.num_heads,
        "num_kv_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "qkv_bias": attention.qkv_bias,
        "out_bias": attention.out_bias,
        "qk_norm": attention.qk_norm,
        "ffn_size": ff.ffn_size,
        "ffn_bias": ff.bias,
        "gated": ff.gated,
        "norm": block.norm.kind,
        "norm_bias": block.norm.bias,
        "positions": "learned" if positions else "rotary",
        "num_positions": positions,
        "tied": model.head.tied,
        "dropout": DROPOUT if block.dropout else 0.0,
        "attention": plan.inputs.workload.attention,
    }


def notes(plan: Plan) -> list[str]:
    """What the plan does not state and the run still needs, or does differently."""
    model, q = plan.inputs.model, plan.decision
    found = [
        "Not in the plan: data, learning-rate schedule, gradient clipping, checkpoints; data are synthetic."
    ]
    if not model.stacks[0].embedding.num_positions:
        found.append(
            "Pass --rotary-base with the model's rope_theta; scaled rotary positions are not applied."
        )
    if model.num_mtp_layers:
        found.append(f"The model's {model.num_mtp_layers} multi-token-prediction layers are not trained.")
    if q.virtual_stages > 3 and q.sharding == "optimizer":
        found.append("PyTorch keeps at most three virtual stages gathered a rank and gathers others again.")
    return found


def _literal(value: Any) -> str:
    """A Python literal; a list or a table longer than a line has one entry a line or a wrapped line."""
    if isinstance(value, dict):
        rows = "".join(f"    {json.dumps(key)}: {_literal(item)},\n" for key, item in value.items())
        return f"{{\n{rows}}}"
    if isinstance(value, list) and len(repr(value)) > 80:
        rows = ""
        for at in range(0, len(value), 8):
            rows += "    " + ", ".join(_literal(item) for item in value[at : at + 8]) + ",\n"
        return f"[\n{rows}]"
    if isinstance(value, list):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return json.dumps(value) if isinstance(value, str) else repr(value)
