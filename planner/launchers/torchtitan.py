"""torchtitan: a plan as a Python module that returns the Trainer configuration, with a torchrun script.

torchtitan has no configuration files any more: a run names a module and a function in it. The module holds
the plan as constants and one function for each version whose fields differ: ``plan`` for release 0.3.0,
which counts sequences, ``plan_main`` for main of August 2026, which counts tokens. TORCHTITAN=main chooses
the second in run.sh. Choices of this exporter:

- The stage split is always written out as module names, checked here to hold every layer once: torchtitan
  drops names it does not know and layers nobody lists, without a word.
- fsdp_reshard_after_forward: always for sharded parameters, never otherwise (see torchtitan_rules).
- Everything the plan does not state stays as torchtitan's own configuration of the model has it.
"""

from __future__ import annotations

import json
from typing import Any

from planner.launchers.base import Reason, broken, require_expressible
from planner.launchers.run_scripts import comments, header, run_job, run_script
from planner.launchers.torch_rules import FILLED_SEARCH, SCHEDULE_NAMES, TIED_SEARCH
from planner.launchers.torchtitan_models import Flavor, flavor_of
from planner.launchers.torchtitan_rules import SEARCH_RULES, TORCHTITAN_RULES, data_mesh
from planner.plan_file.schema import Plan
from planner.strategy.limits import Limits

TORCHTITAN_LIMITS = Limits(
    target="torchtitan",
    schedules=("1f1b", "interleaved", "gpipe", "zb-v"),
    recompute_granularity="uniform",
    has_layer_sharding=False,
    parameter_sharding_with_pipeline=False,
    kv_heads_by_tp=True,
    stack="torchtitan",
    rules=(*SEARCH_RULES, TIED_SEARCH, FILLED_SEARCH),
)
WRITTEN_FOR = "torchtitan 0.3.0 and main of August 2026"
CHECKPOINTING = {"none": "None", "selective": "SelectiveAC.Config()", "full": "FullAC.Config()"}
MODULE = "planner_config"


class TorchTitan:
    """The torchtitan launcher."""

    name = "torchtitan"
    limits = TORCHTITAN_LIMITS
    verified_by = (
        "own rule table; the module read back to the plan's dp, microbatches, virtual stages, layers per "
        "stage, every layer once. Sample plans passed the configuration manager of 0.3.0; none was run"
    )

    def reasons(self, plan: Plan) -> list[Reason]:
        """Every rule of the model and of the strategy that the plan breaks."""
        return broken(TORCHTITAN_RULES, plan)

    def export(self, plan: Plan) -> dict[str, str]:
        """planner_config.py, run.sh and run.sbatch. Raises UnsupportedByTarget with all reasons."""
        require_expressible(self.name, self.reasons(plan))
        lines = header(plan, WRITTEN_FOR, self.verified_by, notes(plan))
        setup = [
            'export PYTHONPATH="$HERE${PYTHONPATH:+:$PYTHONPATH}"',
            f'MODULE="${{MODULE:-{MODULE}}}"',
            'case "${TORCHTITAN:-0.3}" in',
            '  0.3*) CONFIG="${CONFIG:-plan}" ;;',
            '  main) CONFIG="${CONFIG:-plan_main}" ;;',
            '  *) echo "TORCHTITAN must be 0.3 or main" >&2; exit 2 ;;',
            "esac",
        ]
        command = '-m torchtitan.train --module "$MODULE" --config "$CONFIG"'
        return {
            f"{MODULE}.py": config_module(plan, lines),
            "run.sh": run_script(plan, lines, setup, command),
            "run.sbatch": run_job(plan, lines),
        }


TORCHTITAN = TorchTitan()


def parallelism(plan: Plan) -> dict[str, Any]:
    """Fields of ParallelismConfig that both versions have."""
    q, d = plan.decision, plan.decision.degrees
    replicas, shards = data_mesh(plan)
    return {
        "data_parallel_replicate_degree": replicas,
        "data_parallel_shard_degree": shards,
        "fsdp_reshard_after_forward": "always" if q.sharding == "parameters" else "never",
        "tensor_parallel_degree": d.tp,
        "enable_sequence_parallel": q.sequence_parallel and d.tp > 1,
        "context_parallel_degree": d.cp,
        "expert_parallel_degree": d.ep,
        "pipeline_parallel_degree": d.pp,
        "pipeline_parallel_schedule": SCHEDULE_NAMES[q.schedule],
    }


def batches(plan: Plan) -> dict[str, dict[str, dict[str, int]]]:
    """Batch fields by version, then by section; 0.3.0 in sequences, main in tokens."""
    q, length = plan.decision, plan.inputs.workload.sequence_length
    is_piped = q.degrees.pp > 1
    per_call = q.microbatches if is_piped else 1
    return {
        "plan": {
            "training": {
                "local_batch_size": q.microbatch_size * per_call,
                "global_batch_size": q.global_batch,
                "seq_len": length,
            },
            "parallelism": {"pipeline_parallel_microbatch_size": q.microbatch_size},
        },
        "plan_main": {
            "training": {
                "num_tokens_per_microbatch_per_dp_rank": q.microbatch_size * length,
                "num_tokens_per_train_step": q.global_batch * length,
                "max_context_length": length,
            },
            "parallelism": {"num_pp_microbatches": per_call},
        },
    }


def stage_modules(plan: Plan) -> list[list[str]]:
    """Module names of every virtual stage: tok_embeddings first, norm and lm_head last."""
    found = []
    for stage in plan.decision.stages:
        names = ["tok_embeddings"] if stage.has_embedding else []
        names += [f"layers.{layer}" for layer in range(stage.layers[0], stage.layers[1] + 1)]
        found.append(names + (["norm", "lm_head"] if stage.has_head else []))
    return found


def config_module(plan: Plan, lines: list[str]) -> str:
    """The text of planner_config.py for an expressible plan. Raises ValueError for a model not shipped."""
    flavor = flavor_of(plan.inputs.model)
    if flavor is None:
        raise ValueError(f"{plan.inputs.model.name} is not a model of torchtitan")
    mode = plan.decision.stages[0].layer_strategies[0].recompute
    is_piped = plan.decision.degrees.pp > 1
    # CUDA graphs refuse pipelines, and expert parallelism with the standard dispatcher.
    no_graphs = is_piped or plan.decision.degrees.ep > 1
    stages = stage_modules(plan) if is_piped else None
    parts = [
        '"""The plan as torchtitan configurations: plan (0.3.0) and plan_main (main of August 2026)."""',
        comments(lines),
        _imports(flavor, mode),
        f"PARALLELISM = {_table(parallelism(plan))}",
        f"STAGES = {_stages(stages)}",
        f"BATCHES = {_table(batches(plan))}",
        _functions(flavor, mode, no_graphs),
    ]
    return "\n\n".join(parts)


def notes(plan: Plan) -> list[str]:
    """What the plan does not state and the run still needs, or does differently."""
    q, model = plan.decision, plan.inputs.model
    found = [
        "Not in the plan, torchtitan's own values apply: data set, learning rate, steps, checkpoints, "
        "compilation. Tokenizer and weights: set HF_ASSETS_PATH."
    ]
    if q.degrees.pp == 1 and q.microbatches > 1 and q.degrees.dp * q.degrees.cp > 1:
        if q.sharding == "none":
            found.append(
                f"Gradients are reduced after each of {q.microbatches} microbatches, not once a step."
            )
        if q.sharding == "gradients" and plan.inputs.options.stack != TORCHTITAN_LIMITS.stack:
            found.append(f"Weights are gathered for each of {q.microbatches} microbatches, not once a step.")
    if q.recompute == "selective":
        found.append(
            "SelectiveAC keeps matrix products and runs the rest again: less memory, a little slower."
        )
    if q.degrees.cp > 1:
        found.append("Context parallelism gathers keys and values instead of passing them round a ring.")
    if q.virtual_stages > 3 and q.sharding == "optimizer":
        found.append("PyTorch keeps at most three virtual stages gathered a rank and gathers others again.")
    if model.num_mtp_layers:
        found.append(f"The model's {model.num_mtp_layers} multi-token-prediction layers are not trained.")
    return found


def _imports(flavor: Flavor, mode: str) -> str:
    lines = [
        "import os",
        "from dataclasses import replace",
        "",
        "from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss",
        "from torchtitan.models.common.config_utils import decoder_vocab_size",
        f"from torchtitan.models.{flavor.module} import model_registry",
        f"from torchtitan.models.{flavor.module}.config_registry import {flavor.base}",
    ]
    if mode != "none":
        name = CHECKPOINTING[mode].partition(".")[0]
        lines.insert(4, f"from torchtitan.distributed.activation_checkpoint import {name}")
    return "\n".join(lines)


def _functions(flavor: Flavor, mode: str, no_graphs: bool) -> str:
    return f'''
def _configured(version):
    """torchtitan's own configuration of the model with the plan's choices in it, validated again."""
    base = {flavor.base}()
    spec = model_registry("{flavor.flavor}")
    loss = CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(spec))
    batches = BATCHES[version]
    parallelism = type(base.parallelism)(
        **PARALLELISM, **batches["parallelism"], module_fqns_per_model_part=STAGES
    )
    training = replace(base.training, **batches["training"], disable_cuda_graphs={no_graphs})
    return replace(
        base,
        model_spec=spec,
        loss=ChunkedLossWrapper.Config(loss_fn=loss),
        hf_assets_path=os.environ.get("HF_ASSETS_PATH", "./assets/hf/{flavor.assets}"),
        parallelism=parallelism,
        training=training,
        activation_checkpoint={CHECKPOINTING[mode]},
    )


def plan():
    """For torchtitan 0.3.0."""
    return _configured("plan")


def plan_main():
    """For torchtitan's main branch."""
    return _configured("plan_main")
'''


def _table(value: dict[str, Any], depth: int = 1) -> str:
    pad = "    " * depth
    rows = ""
    for key, item in value.items():
        text = _table(item, depth + 1) if isinstance(item, dict) else _word(item)
        rows += f"{pad}{json.dumps(key)}: {text},\n"
    return f"{{\n{rows}{pad[4:]}}}"


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _stages(stages: list[list[str]] | None) -> str:
    if stages is None:
        return "None"
    rows = "".join(f"    {json.dumps(stage)},\n" for stage in stages)
    return f"[\n{rows}]"
