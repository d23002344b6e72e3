"""The optimizer on the host, from Megatron-LM's flags.

Facts: Megatron-LM core 0.16.1, optimizer/optimizer_config.py (what the precision-aware optimizer needs) and
optimizer/cpu_offloading/hybrid_optimizer.py (the fraction); training/arguments.py of 0.20 dev (its default).
"""

from __future__ import annotations

from planner.launchers.imported import Imported
from planner.launchers.megatron_sharding_import import OPTIMIZER
from planner.launchers.megatron_words import CommandLine

OFFLOAD, FRACTION = "--optimizer-cpu-offload", "--optimizer-offload-fraction"
PRECISION_AWARE, OVERLAP = "--use-precision-aware-optimizer", "--overlap-cpu-optimizer-d2h-h2d"
FORMATS = ("--main-grads-dtype", "--main-params-dtype", "--exp-avg-dtype", "--exp-avg-sq-dtype")
OFFLOAD_FLAGS = (OFFLOAD, FRACTION, PRECISION_AWARE, OVERLAP, *FORMATS)


def read_offload(line: CommandLine, found: Imported) -> None:
    """Whether the whole optimizer is the host's, with the rules of these flags."""
    for flag in FORMATS:
        width = line.text(flag, "fp32") or "fp32"
        if width != "fp32":
            found.unpriced.append(f"{flag} {width}: optimizer state in other number formats")
    if not line.has(OFFLOAD):
        if line.has(PRECISION_AWARE):  # it keeps fp32 weights as 16-bit ones and their remainders
            found.unpriced.append(f"{PRECISION_AWARE}: optimizer state in other number formats")
        return
    missing = [flag for flag in (PRECISION_AWARE, OPTIMIZER) if not line.has(flag)]
    if missing:
        found.fault("offload", f"{OFFLOAD} without {' and '.join(missing)}", " and ".join(missing))
    if found.optimizer not in (None, "adamw"):
        found.fault("offload", f"{OFFLOAD} with --optimizer sgd", "--optimizer adam")
    text = line.text(FRACTION, "1.0") or "1.0"
    try:
        fraction = float(text)
    except ValueError:
        found.fault("offload", f"{FRACTION} {text} is no number", f"{FRACTION} 1.0")
        return
    if fraction == 1.0:
        found.states("offload", "optimizer", OFFLOAD)
        if line.has(OVERLAP):
            found.assumptions.append(f"{OVERLAP}: the update on the host is priced with nothing hidden")
    elif fraction > 0.0:
        found.unpriced.append(f"{FRACTION} {text}: a part of the optimizer on the host")
    else:
        found.fault(
            "offload",
            f"{FRACTION} {text} leaves the optimizer on the GPUs",
            f"{FRACTION} 1.0",
            is_fatal=False,
        )
