"""Pipeline stages from Megatron-LM's flags: the layout string, uneven ends, virtual stages.

Facts: Megatron-LM core 0.16.1 and 0.20 dev, training/arguments.py, transformer_config.py,
pipeline_parallel_layer_layout.py, transformer_block.py (layers of a rank).
"""

from __future__ import annotations

from planner.errors import InputError
from planner.launchers.imported import Imported
from planner.launchers.megatron_read import parse_layout
from planner.launchers.megatron_words import CommandLine

LAYOUT = "--pipeline-model-parallel-layout"
PER_STAGE = "--num-layers-per-virtual-pipeline-stage"
STAGES = "--num-virtual-stages-per-pipeline-rank"
FIRST, LAST = "--decoder-first-pipeline-num-layers", "--decoder-last-pipeline-num-layers"
ENDS = ("--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split")
STAGE_FLAGS = (LAYOUT, PER_STAGE, STAGES, FIRST, LAST, *ENDS)


def read_stages(line: CommandLine, found: Imported, layers: int | None) -> None:
    """Virtual stages and the layers of each, with the rules of the split."""
    ways = [flag for flag in (LAYOUT, PER_STAGE, STAGES) if line.has(flag)]
    if len(ways) > 1:
        found.fault("one-stage-split", f"{' and '.join(ways)} exclude each other", f"{ways[0]} alone")
    mixed = [flag for flag in (FIRST, LAST, *ENDS) if line.has(flag)]
    if line.has(LAYOUT) and mixed:
        found.fault(
            "one-stage-split", f"{LAYOUT} and {', '.join(mixed)} exclude each other", f"{LAYOUT} alone"
        )
    if found.pp is None:
        return
    if line.has(LAYOUT):
        _layout(line, found, layers)
    elif layers is not None:
        _split(line, found, layers)
    elif line.has(PER_STAGE):
        raise InputError(f"{PER_STAGE} without --num-layers", file=line.file, hint="add --model")
    else:
        found.virtual_stages = line.number(STAGES, 1)
    found.schedule = "interleaved" if (found.virtual_stages or 1) > 1 else "1f1b"
    for flag in ways:
        found.where["virtual_stages"] = f"{flag} {line.text(flag)}"
    if (found.virtual_stages or 1) > 1 and found.pp == 1:
        found.fault("interleaving", f"{found.virtual_stages} virtual stages with pp 1", "pp above 1")


def _layout(line: CommandLine, found: Imported, layers: int | None) -> None:
    pp = found.pp or 1
    stages = parse_layout(line.text(LAYOUT) or "")
    counts = [stage.count("t") for stage in stages]
    if len(stages) % pp:
        found.fault(
            "stages-cover-layers",
            f"the layout has {len(stages)} stages for pp {pp}",
            f"a multiple of {pp} stages",
        )
        return
    if layers is not None and sum(counts) != layers:
        found.fault(
            "stages-cover-layers",
            f"the layout holds {sum(counts)} layers, the model has {layers}",
            f"{layers} letters t over {len(stages)} stages",
        )
    extra = [at for at, stage in enumerate(stages) if "m" in stage]
    if len(extra) > 1 or (extra and extra[0] < len(stages) - pp):
        found.fault(
            "mtp-stage",
            f"multi-token-prediction layers on stages {extra}",
            "all of them on one stage of the last chunk",
        )
    if extra:
        found.unpriced.append(f"{LAYOUT}: multi-token-prediction layers")
    found.virtual_stages = len(stages) // pp
    found.stage_layers = tuple(counts)


def _split(line: CommandLine, found: Imported, layers: int) -> None:
    """Equal stages, equal but for the ends, or counted with embedding and loss as layers."""
    pp = found.pp or 1
    units = layers + sum(line.has(flag) for flag in ENDS)
    first, last = line.number(FIRST, least=0), line.number(LAST, least=0)
    given = [count for count in (first, last) if count is not None]
    middle = pp - len(given)
    rest = units - sum(given)
    if given and (middle < 0 or (middle == 0) != (rest == 0) or rest < 0 or (middle and rest % middle)):
        found.fault(
            "uneven-ends",
            f"{layers} layers less {' and '.join(map(str, given))} at the ends leave {rest} for "
            f"{middle} stages",
            _nearest_end(rest, middle, given),
        )
        return
    if not given and units % pp:
        low = units // pp * pp
        found.fault(
            "layers-by-stages",
            f"{units} layers over pp {pp} leave {units % pp}",
            f"pp that divides {units}, {LAYOUT}, or {low or pp} layers",
        )
        return
    each = [rest // middle if middle else 0] * pp
    if first is not None:
        each[0] = first
    if last is not None:
        each[-1] = last
    chunks = _chunks(line, found, each)
    if chunks is None:
        return
    sizes = [each[rank] // chunks for _ in range(chunks) for rank in range(pp)]
    sizes[0] -= line.has(ENDS[0])
    sizes[-1] -= line.has(ENDS[1])
    found.virtual_stages = chunks
    found.stage_layers = tuple(sizes)


def _nearest_end(rest: int, middle: int, given: list[int]) -> str:
    if middle <= 0 or rest < middle:
        return f"{LAYOUT}"
    spare = rest % middle
    return f"{given[0] + spare} layers on the first of these ends, or {LAYOUT}"


def _chunks(line: CommandLine, found: Imported, each: list[int]) -> int | None:
    """Virtual stages a rank; None after a fault."""
    if line.has(PER_STAGE):
        size = line.number(PER_STAGE) or 1
        bad = next((count for count in each if count % size), None)
        if bad is not None or len(set(each)) > 1:
            found.fault(
                "virtual-stages-by-layers",
                f"{bad if bad is not None else each} layers a rank in virtual stages of {size}",
                f"a divisor of {bad if bad is not None else each[0]}",
            )
            return None
        return each[0] // size
    chunks = line.number(STAGES, 1) or 1
    bad = next((count for count in each if count % chunks), None)
    if bad is not None:
        divisors = [d for d in range(1, bad + 1) if bad % d == 0]
        found.fault(
            "virtual-stages-by-layers",
            f"{chunks} virtual stages for {bad} layers a rank: {bad // chunks} each, {bad % chunks} lost",
            f"{STAGES} of {divisors}",
        )
        return None
    return chunks
