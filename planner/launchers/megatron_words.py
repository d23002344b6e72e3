"""Where Megatron-LM's arguments come from: a launch script, an argument list, flags.json, Bridge overrides.

All four become one ``CommandLine``: flags with their words, the environment, the number of GPUs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.errors import InputError
from planner.launchers.imported import MOST, MOST_LAYERS, MOST_RANKS, Files, one_file
from planner.launchers.shell import Script, Word, read_shell

DECISIVE = (
    "--num-layers",
    "--tensor-model-parallel-size",
    "--pipeline-model-parallel-size",
    "--micro-batch-size",
    "--global-batch-size",
)
CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
# Bridge's names that are not Megatron-LM's flag with underscores.
RENAMED = {
    "virtual_pipeline_model_parallel_size": "--num-virtual-stages-per-pipeline-rank",
    "num_layers_in_first_pipeline_stage": "--decoder-first-pipeline-num-layers",
    "num_layers_in_last_pipeline_stage": "--decoder-last-pipeline-num-layers",
    "account_for_embedding_in_pipeline_split": "--account-for-embedding-in-pipeline-split",
    "account_for_loss_in_pipeline_split": "--account-for-loss-in-pipeline-split",
    "sequence_length": "--seq-length",
    "num_moe_experts": "--num-experts",
}
_OVERRIDE = re.compile(
    r"\+{0,2}(model|ddp|train|dataset|optimizer|mixed_precision|dist|checkpoint)\.(\w+)=(.*)", re.S
)


@dataclass
class CommandLine:
    """Flags to words. environment: value, None for unset on purpose; None as a whole when unknown.

    is_bridge: overrides of a recipe, so a setting that is absent is the recipe's, not Megatron-LM's default.
    """

    file: str
    flags: dict[str, list[Word]]
    world_size: int | None = None
    environment: dict[str, str | None] | None = None
    is_bridge: bool = False
    assumptions: list[str] = field(default_factory=list)

    def has(self, name: str) -> bool:
        """Whether the flag is given."""
        return name in self.flags

    def text(self, name: str, default: str | None = None) -> str | None:
        """The flag's first value. Raises InputError when it cannot be known from the file."""
        if name not in self.flags:
            return default
        return self.texts(name)[0]

    def texts(self, name: str) -> list[str]:
        """All values of a flag. Raises InputError for a missing or unknown one."""
        words = self.flags[name]
        if not words:
            raise InputError(f"{name} has no value", file=self.file)
        for word in words:
            if word.doubt:
                raise InputError(
                    f"{name}: the value is not in the file: {word.doubt}",
                    file=self.file,
                    hint=f"write the number behind {name}",
                )
            for default in word.defaults:
                note = f"{default} (default in {self.file})"
                if note not in self.assumptions:
                    self.assumptions.append(note)
        return [word.text for word in words]

    def number(self, name: str, default: int | None = None, least: int = 1) -> int | None:
        """The flag's value as a whole number. Raises InputError when it is none."""
        text = self.text(name)
        if text is None:
            return default
        most = MOST_LAYERS if "layers" in name else MOST_RANKS if "parallel" in name else MOST
        if not text.isdigit() or not least <= int(text) <= most:
            raise InputError(
                f"{name} must be a whole number from {least} to {most}, not {text!r}", file=self.file
            )
        return int(text)


def read_command_line(files: Files) -> CommandLine:
    """The arguments in a file. Raises InputError when there are none or several runs."""
    name = one_file(files, "megatron", ("flags.json", "train.sh"), (".sh", ".txt", ".args"))
    content = files[name]
    if isinstance(content, Mapping):
        return _from_document(name, content)
    text = str(content)
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and lines[0].lstrip().startswith("--"):
        words = shlex.split(text.replace("\\\n", " "), comments=True)
        return _from_words(name, [Word(word) for word in words], None)
    return _from_script(name, read_shell(text))


def _from_document(name: str, document: Mapping[str, Any]) -> CommandLine:
    flags = document.get("flags")
    if not isinstance(flags, Mapping):
        raise InputError(
            "no flags: give a launch script, an argument list or an exported flags.json", file=name
        )
    found = {
        str(flag): [Word(str(value)) for value in (values if isinstance(values, list) else [values])]
        for flag, values in flags.items()
    }
    nodes, each = document.get("nodes"), document.get("gpus_per_node")
    world = nodes * each if isinstance(nodes, int) and isinstance(each, int) else None
    if world is not None and not 0 < world <= MOST_RANKS:
        raise InputError(f"nodes {nodes} x gpus_per_node {each} is no number of GPUs", file=name)
    environment = document.get("environment")
    return CommandLine(name, found, world, dict(environment) if isinstance(environment, Mapping) else None)


def _from_script(name: str, script: Script) -> CommandLine:
    runs = [c for c in script.commands if any(w.text.partition("=")[0] in DECISIVE for w in c)]
    runs = runs or [c for c in script.commands if any(_OVERRIDE.fullmatch(w.text) for w in c)]
    if not runs:
        raise InputError(
            f"no command with {DECISIVE[1]} or the like, nor Bridge overrides (model.x=...)",
            file=name,
            hint="give the script that starts pretrain_gpt.py, or its arguments alone",
        )
    if len(runs) > 1:
        raise InputError(
            f"{len(runs)} commands with Megatron arguments: which one?", file=name, hint="keep one"
        )
    environment: dict[str, str | None] = {key: word.text for key, word in script.exported.items()}
    environment |= dict.fromkeys(script.unset)
    return _from_words(name, runs[0], script, environment)


def _from_words(
    name: str, words: list[Word], script: Script | None, environment: dict[str, str | None] | None = None
) -> CommandLine:
    assumptions = []
    if any(word.doubt.startswith(("$@", "$*")) for word in words):
        assumptions.append(f"{name}: arguments given when it is started are not seen")
    words = [word for word in words if not word.doubt.startswith(("$@", "$*"))]
    end = next((i for i, word in enumerate(words) if re.fullmatch(r"\d?>+.*", word.text)), len(words))
    words = words[:end]
    overrides = [match for word in words if (match := _OVERRIDE.fullmatch(word.text)) is not None]
    is_bridge = bool(overrides) and not any(word.text in DECISIVE for word in words)
    flags = split_words(words)
    if is_bridge:
        flags = {
            key: value for key, value in flags.items() if key in ("--nnodes", "--nproc-per-node", "--recipe")
        }
        flags |= dict(filter(None, (_bridge_flag(*match.groups()) for match in overrides)))
        assumptions.append(f"{name}: what no override states is the recipe's and must be given by flags")
    world = _world(flags, script, name)
    return CommandLine(name, flags, world, None if is_bridge else environment, is_bridge, assumptions)


def split_words(words: list[Word]) -> dict[str, list[Word]]:
    """Flag to values; the last of a repeated flag counts, torchrun's underscores are dashes."""
    flags: dict[str, list[Word]] = {}
    current: list[Word] | None = None
    for word in words:
        if word.text.startswith("--"):
            flag, joined, value = word.text.partition("=")
            if flag.startswith(("--nproc", "--nnodes")):
                flag = flag.replace("_", "-")
            current = [Word(value, word.doubt)] if joined else []
            if word.doubt and not joined:
                current = [Word("", word.doubt)]
            flags[flag] = current
        elif current is not None and (word.text or word.doubt):
            current.append(word)
    return flags


def _bridge_flag(section: str, key: str, value: str) -> tuple[str, list[Word]] | None:
    """A Bridge override as Megatron-LM's flag; None for a switch that is off."""
    flag = RENAMED.get(key, f"--{key.replace('_', '-')}")
    if section == "mixed_precision":
        return (f"--{key}", [])
    text = value.strip().strip("'\"")
    if text.lower() in ("false", "null", "none"):
        return None
    if text.lower() == "true":
        return (flag, [])
    if text.startswith("[["):
        return (flag, [Word(_layout_text(text))])
    if text.startswith("["):
        return (flag, [Word(part.strip().strip("'\"")) for part in text[1:-1].split(",") if part.strip()])
    return (flag, [Word(text)])


def _layout_text(text: str) -> str:
    """A list of lists of layer names as the layout string."""
    letters = {"embedding": "E", "decoder": "t", "mtp": "m", "loss": "L"}
    stages = re.findall(r"\[([^\[\]]*)\]", text)
    try:
        return "|".join(
            "".join(letters[name.strip().strip("'\"")] for name in stage.split(",") if name.strip())
            for stage in stages
        )
    except KeyError as error:
        raise InputError(f"layout names {error}", allowed=list(letters)) from None


def _world(flags: dict[str, list[Word]], script: Script | None, name: str) -> int | None:
    """GPUs of the run: torchrun's nodes x processes, #SBATCH lines, or WORLD_SIZE; None when not stated."""
    per_node, nodes = flags.pop("--nproc-per-node", None), flags.pop("--nnodes", None)
    if per_node and per_node[0].text.isdigit() and not per_node[0].doubt:
        count = nodes[0] if nodes else Word("1")
        if count.text.isdigit() and not count.doubt:
            world = int(count.text) * int(per_node[0].text)
            if not 0 < world <= MOST_RANKS:
                raise InputError(f"{count.text} nodes of {per_node[0].text} is no number of GPUs", file=name)
            return world
    if script is None:
        return None
    options = {
        match[1]: match[2]
        for line in script.sbatch
        if (match := re.match(r"--([\w-]+)[= ]\s*(?:gpu:)?(?:\w+:)?(\d+)", line)) is not None
    }
    each = options.get("gpus-per-node") or options.get("gres") or options.get("ntasks-per-node")
    if each and "nodes" in options:
        return int(options["nodes"]) * int(each)
    stated = script.variables.get("WORLD_SIZE")
    return int(stated.text) if stated and not stated.doubt and stated.text.isdigit() else None
