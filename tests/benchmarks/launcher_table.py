"""The launcher table: 12 models on 6 clusters, several decisions each, through every launcher.

For every plan and launcher: can the launcher express it (and if not, by which rule), are files emitted, does
the launcher's own code accept them and derive the plan's numbers, does our reader read the same numbers
back, is the decision the same after an import. Run it with the ``launchers`` extra installed:

    python tests/benchmarks/launcher_table.py            # prints the table and writes launcher_table.md

A launcher whose own code is not installed has "-" in that column.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "launchers"))

from acceptance import ACCEPTANCE  # noqa: E402
from legal_decisions import draw_decision, legal_meshes, plan_of_decision  # noqa: E402
from round_trip import round_trip, write  # noqa: E402

from planner.api import make_plan  # noqa: E402
from planner.errors import PlannerError  # noqa: E402
from planner.launchers.registry import launcher, launcher_names  # noqa: E402
from planner.plan_file.schema import Plan  # noqa: E402
from planner.read_back import derived_differences  # noqa: E402
from planner.request import Request, resolve  # noqa: E402
from planner.strategy.limits import ANY  # noqa: E402

# model -> GPUs, sequence length, global batch
MODELS = {
    "gpt2-xl": (8, 1024, 96),
    "llama-2-7b": (16, 4096, 96),
    "llama-3.1-8b": (16, 8192, 96),
    "qwen3-8b": (16, 4096, 96),
    "qwen2.5-7b": (16, 4096, 96),
    "llama-2-70b": (64, 4096, 192),
    "llama-3.1-70b": (64, 8192, 192),
    "gpt3-175b": (64, 2048, 192),
    "mixtral-8x7b": (32, 4096, 96),
    "qwen3-30b-a3b": (32, 4096, 96),
    "gpt-oss-120b": (64, 4096, 192),
    "deepseek-v3": (64, 4096, 192),
}
CLUSTERS = ("dgx-a100", "dgx-h100", "dgx-b200", "aws-p4d", "gb200-nvl72", "mi300x-8")
RANDOM_PLANS = 2
SEED = 20


@dataclass
class Row:
    """One launcher's counts. ``reasons``: rule -> plans it keeps out."""

    expressible: int = 0
    emitted: int = 0
    accepted: int = 0
    refused: int = 0
    read_equal: int = 0
    round_trip: int = 0
    differing: int = 0
    cannot: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def plans() -> Iterator[tuple[str, Plan]]:
    """Planned for ``any``, planned for each launcher in turn, and random legal ones, with their origin."""
    names = [name for name in launcher_names() if name != "megatron-bridge"]
    generator = random.Random(SEED)

    def pick(options):
        return options[generator.randrange(len(options))]

    for turn, (name, cluster) in enumerate((name, cluster) for name in MODELS for cluster in CLUSTERS):
        gpus, length, batch = MODELS[name]
        request = Request(name, cluster=cluster, gpus=gpus, seq_len=length, global_batch=batch)
        try:
            resolved = resolve(request)
        except PlannerError as error:  # the cluster is smaller than the model needs
            print(f"{name} on {cluster}: {error}", file=sys.stderr)
            continue
        for target in ("any", names[turn % len(names)], names[(turn + 3) % len(names)]):
            try:
                yield target, make_plan(request, target=target, top=1, suggest=False)
            except PlannerError as error:
                print(f"{name} on {cluster} for {target}: {type(error).__name__}", file=sys.stderr)
        for limits in (ANY, launcher(names[turn % len(names)]).limits):
            meshes = legal_meshes(resolved.problem, limits)
            for _ in range(RANDOM_PLANS if len(meshes) else 0):
                decision = draw_decision(pick, resolved.problem, meshes, layers_differ=limits is ANY)
                yield "random", plan_of_decision(resolved, decision)


def judge(plan: Plan, target: str, row: Row, folder: Path, failures: list[str]) -> None:
    """Put one plan through one launcher."""
    reasons = launcher(target).reasons(plan)
    if reasons:
        row.cannot += 1
        row.reasons.update({reason.rule for reason in reasons})
        return
    row.expressible += 1
    name = f"{target}: {plan.inputs.model.name} on {plan.inputs.cluster.profile.name}"
    write(plan, target, folder)
    row.emitted += 1
    if target in ACCEPTANCE:
        try:
            found = ACCEPTANCE[target](plan, folder)
        except ImportError as error:
            raise SystemExit(f"{target}'s own code is not installed: {error}") from error
        except Exception as error:
            found = [f"{type(error).__name__}: {str(error)[:200]}"]
        row.accepted += not found
        row.refused += bool(found)
        failures += [f"{name} refused: {text}" for text in found]
    files = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.is_file()}
    found = derived_differences(plan, target, files)
    row.read_equal += not found
    back = round_trip(plan, target, folder)
    row.round_trip += not back
    row.differing += bool(found or back)
    failures += [f"{name} differs: {text}" for text in [*found, *back]]


def table(rows: dict[str, Row], count: int, pairs: int, origins: Counter[str]) -> str:
    """The table as Markdown."""
    from planner import __version__

    drawn = origins["random"]
    lines = [
        "# Every plan through every launcher",
        "",
        f"{count} plans of {len(MODELS)} models on {len(CLUSTERS)} clusters ({pairs} pairs): "
        f"{origins['any']} planned "
        f"for any launcher, {count - drawn - origins['any']} for a given one, {drawn} drawn at "
        "random from all legal "
        f"decisions. Written by `python tests/benchmarks/launcher_table.py` (planner {__version__}).",
        "",
        "| launcher | expressible | emitted | accepted by its own code | read back equal | "
        "round trip equal | refused "
        "| differing | not expressible |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for target, row in rows.items():
        accepted = str(row.accepted) if target in ACCEPTANCE else "-"
        refused = str(row.refused) if target in ACCEPTANCE else "-"
        lines.append(
            f"| {target} | {row.expressible} | {row.emitted} | {accepted} | {row.read_equal} | "
            f"{row.round_trip} | "
            f"{refused} | {row.differing} | {row.cannot} |"
        )
    lines += [
        "",
        "Accepted by its own code: megatron-core's configuration class and process groups at "
        "full world size, "
        "DeepSpeed's configuration class, Accelerate's file reader and mesh with transformers' "
        "arguments, PyTorch's "
        "mesh and schedule under its fake process group; each is compared with the plan's numbers.",
        "",
        "## Why a launcher cannot express a plan",
        "",
        "A plan can break several rules and then counts under each.",
        "",
        "| launcher | rule: plans |",
        "|---|---|",
    ]
    for target, row in rows.items():
        words = ", ".join(f"{rule}: {number}" for rule, number in row.reasons.most_common())
        lines.append(f"| {target} | {words} |")
    return "\n".join(lines) + "\n"


def run() -> tuple[dict[str, Row], int, str, list[str]]:
    """All plans through all launchers: rows, number of plans, the table, what went wrong."""
    rows = {target: Row() for target in launcher_names() if target != "megatron-bridge"}
    failures: list[str] = []
    origins: Counter[str] = Counter()
    pairs = set()
    with tempfile.TemporaryDirectory() as root:
        for number, (origin, plan) in enumerate(plans()):
            origins[origin] += 1
            pairs.add((plan.inputs.model.name, plan.inputs.cluster.profile.name))
            for target, row in rows.items():
                judge(plan, target, row, Path(root) / f"{number}-{target}", failures)
            if number % 50 == 49:
                print(f"{number + 1} plans, {len(failures)} failures", file=sys.stderr)
    count = sum(origins.values())
    return rows, count, table(rows, count, len(pairs), origins), failures


if __name__ == "__main__":
    _, _, text, wrong = run()
    print(text)
    for line in wrong[:40]:
        print(line, file=sys.stderr)
    if wrong:
        sys.exit(1)
    (HERE / "launcher_table.md").write_text(text, encoding="utf-8")
