"""Recompute from Megatron-LM's flags: none, selective, full, or full on the first N layers of a stage."""

from __future__ import annotations

from planner.launchers.imported import Imported
from planner.launchers.megatron_words import CommandLine

GRANULARITY, METHOD = "--recompute-granularity", "--recompute-method"
COUNT, MODULES = "--recompute-num-layers", "--recompute-modules"
SHORT = "--recompute-activations"
RECOMPUTE_FLAGS = (GRANULARITY, METHOD, COUNT, MODULES, SHORT)
PRICED_MODULES = ({"layernorm"}, {"core_attn"})
EXTRAS = {"moe_act", "mla_up_proj"}


def read_recompute(line: CommandLine, found: Imported) -> None:
    """The recompute of every layer, with the rules of its flags."""
    mode = "selective" if line.has(SHORT) else line.text(GRANULARITY, None if line.is_bridge else "none")
    if mode is None:
        return
    words = f"{GRANULARITY} {mode}"
    method, count = line.text(METHOD), line.number(COUNT)
    if mode not in ("none", "selective", "full"):
        found.fault("recompute", f"{words} is not a choice", "full or selective")
        return
    if mode == "full" and (method not in ("uniform", "block") or count is None):
        missing = METHOD if method not in ("uniform", "block") else COUNT
        found.fault("recompute", f"{words} without {missing}", f"{METHOD} uniform {COUNT} 1")
        return
    if mode != "full" and (method is not None or count is not None):
        found.fault("recompute", f"{words} takes no {METHOD} and no {COUNT}", f"{GRANULARITY} full")
    if mode == "selective":
        _modules(line, found)
    if mode == "full" and count is not None and found.stage_layers:
        _count(found, method or "", count)
        longest = max(found.stage_layers)
        if method == "block" and count < longest:
            found.recompute_block = count
        if method == "uniform" and count > 1:
            found.unpriced.append(f"{METHOD} uniform {COUNT} {count}: units of several layers")
    elif mode == "full" and method == "block":
        found.recompute_block = count
    found.states("recompute", mode, words)


def _count(found: Imported, method: str, count: int) -> None:
    """--recompute-num-layers is never compared with the layers of a stage by the argument check."""
    shortest = min(found.stage_layers or (count,))
    longest = max(found.stage_layers or (count,))
    if count > longest:
        found.fault(
            "recompute-count",
            f"{COUNT} {count} ({method}) but a stage holds {shortest} to {longest} layers: all "
            "are recomputed",
            f"at most {longest}",
            is_fatal=False,
        )


def _modules(line: CommandLine, found: Imported) -> None:
    """Which modules selective recompute drops; those the price of "selective" stands for are plain."""
    modules = set(line.texts(MODULES)) if line.has(MODULES) else {"core_attn"}
    base = modules - EXTRAS
    wanted = "core_attn" if found.attention == "unfused" else "layernorm"
    if base not in PRICED_MODULES:
        found.unpriced.append(f"{MODULES} {' '.join(sorted(modules))}")
    elif base != {wanted}:
        found.assumptions.append(
            f"selective recompute of {' '.join(sorted(modules))} with "
            f"{found.attention or 'flash'} attention is "
            f"priced as that of {wanted}: dropping scores saves nothing when the kernel keeps none"
            if wanted == "layernorm"
            else f"selective recompute of {' '.join(sorted(modules))} is priced as that of {wanted}"
        )
