"""estimate --from and check on launchers' files: what is printed, exit codes, JSON."""

from __future__ import annotations

import json
import shlex

import pytest

ARGUMENTS = "--model llama-3.1-8b --cluster dgx-h100 --gpus 16 --seq-len 4096 --global-batch 64"
LAUNCHERS = ("accelerate", "deepspeed", "galvatron", "megatron", "pytorch", "torchtitan")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of exported files by launcher, each from a plan for that launcher."""
    from planner.cli.app import run

    root = tmp_path_factory.mktemp("exported")
    for name in LAUNCHERS:
        plan = root / f"{name}.json"
        assert run(["plan", *shlex.split(ARGUMENTS), "--target", name, "-o", str(plan)]) == 0
        assert run(["export", str(plan), "--to", name, "-o", str(root / name)]) == 0
    return root


@pytest.mark.parametrize("name", LAUNCHERS)
def test_an_exported_folder_is_estimated_as_the_plan_it_came_from(cli, exported, name):
    model = "--model llama-3.1-8b" if name in ("accelerate", "deepspeed", "galvatron") else ""
    line = f"estimate --from {name} {exported / name} --cluster dgx-h100 {model} --json"
    result = cli(*shlex.split(line))
    assert result.code == 0, result.err + result.out
    plan = json.loads((exported / f"{name}.json").read_text(encoding="utf-8"))
    again = result.json()
    assert again["decision"] == plan["decision"]
    assert again["prediction"]["step_seconds"] == pytest.approx(plan["prediction"]["step_seconds"], rel=1e-9)
    assert again["search"]["status"] == "estimate"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_an_exported_folder_passes_its_check(cli, exported, name):
    result = cli(*shlex.split(f"check {exported / name} --target {name} --model llama-3.1-8b"))
    assert result.code == 0, result.out
    assert "FAIL" not in result.out
    assert "of 16 GPUs" in result.out
    assert "microbatches" in result.out


def edited(exported, tmp_path, old, new):
    text = (exported / "megatron" / "train.sh").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "train.sh"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def test_a_bad_file_fails_its_check_with_rule_and_numbers(cli, exported, tmp_path):
    path = edited(exported, tmp_path, "--num-layers 32", "--num-layers 32\n  --recompute-num-layers 99")
    result = cli("check", path, "--target", "megatron")
    assert result.code == 1
    assert "FAIL recompute" in result.out
    report = cli("check", path, "--target", "megatron", "--json").json()
    assert not report["holds"]
    assert [check["name"] for check in report["checks"] if not check["holds"]] == ["recompute"]


def test_the_answer_says_memory_mfu_and_the_flag_to_change(cli, exported, tmp_path):
    path = edited(exported, tmp_path, "MEGATRON_ARGS=(", "MEGATRON_ARGS=(--recompute-activations")
    result = cli(*shlex.split(f"estimate --from megatron {path} --cluster dgx-h100"))
    assert result.code == 0
    for words in ("Fits", "MFU", "one flag away", "not read in train.sh", "selective"):
        assert words in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("estimate --from megatron FILE", "does not say which GPUs it runs on"),
        ("estimate --from megatron FILE --cluster dgx-h100 --tp 64", "--tp says 64"),
        ("estimate --from megatron FILE --cluster dgx-h100 --gpus 8", "--gpus says 8"),
        ("estimate --from megatron FILE --cluster dgx-h100 --model llama-2-70b", "not the same model"),
        ("estimate --from megatorn FILE --cluster dgx-h100", "unknown launcher"),
        ("estimate --from megatron missing.sh --cluster dgx-h100", "no such file"),
        ("estimate --from megatron FILE --plan p.json", "--plan brings its own inputs"),
        ("estimate --from megatron", "requires 2 arguments"),
        ("check missing.sh --target megatron", "no such file"),
        ("check FILE --target megatorn", "unknown launcher"),
        ("check FILE", "is no plan file"),
    ],
)
def test_bad_input_exits_2_and_says_what_to_do(cli, exported, line, message):
    result = cli(*shlex.split(line.replace("FILE", str(exported / "megatron" / "train.sh"))))
    assert result.code == 2, result.out
    assert message in result.err


def test_plans_are_still_checked_as_plans(cli, exported):
    plan = exported / "megatron.json"
    assert cli("check", plan).code == 0
    result = cli("check", plan, "--target", "megatron")
    assert result.code == 0
    assert "megatron: expressible" in result.out
