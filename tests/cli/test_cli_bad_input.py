"""Bad input: exit 2, one message with the rule and a value that would work, nothing on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import split

import pytest

MACHINE = split("--gpu h100-sxm --gpus 64")
BIG = ["plan", "--model", "llama-3.1-70b", *MACHINE]


def refused(outcome, *words: str) -> None:
    """Exit 2, an error in words on stderr that holds ``words``, and no data."""
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "--model", "lama-3.1-8b", *MACHINE], ["unknown model", "llama-3.1-8b"]),
        (["plan", "--model", "llama-3.1-8b", "--gpu", "h100-sx", "--gpus", "8"], ["unknown", "h100-sxm"]),
        (["plan", "--model", "llama-3.1-8b", "--cluster", "dgx-h10"], ["unknown cluster", "dgx-h100"]),
        (["plan", "--model", "llama-3.1-8b", "--gpu", "a100", "--gpus", "8"], ["ambiguous", "a100-80g-sxm"]),
        (["plan", "--model", "", *MACHINE], ["model name is empty"]),
        (["models", "show", "mixtral-8x7"], ["unknown model", "mixtral-8x7b"]),
        (["hardware", "show", "dgx-h10"], ["unknown", "dgx-h100"]),
        (["schema", "plans"], ["unknown schema", "plan"]),
        ([*BIG, "--target", "megatrn"], ["unknown launcher", "megatron"]),
    ],
)
def test_unknown_names_come_with_the_nearest(cli, arguments, words):
    refused(cli(*arguments), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*BIG, "--tp", "3"], ["world-identity", "64 % 3 = 1", "heads-by-tp", "hint:", "[1, 2, 4, 8"]),
        ([*BIG, "--pp", "128"], ["world-identity", "legal values of pp"]),
        ([*BIG, "--dp", "8", "--global-batch", "500"], ["batch-identity", "496 or 504"]),
        ([*BIG, "--ep", "2"], ["experts-by-ep"]),
        ([*BIG, "--tp", "8", "--pp", "16"], ["128", "does not divide 64"]),
        (["plan", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--gpus", "12"], ["--gpus 8 or --gpus 16"]),
        (["estimate", "--model", "llama-3.1-70b", *MACHINE, "--tp", "3"], ["world-identity", "[1, 2, 4"]),
        (
            ["estimate", "--model", "llama-3.1-8b", *MACHINE, "--global-batch", "130"],
            ["batch-identity", "128 or 192"],
        ),
    ],
)
def test_divisibility_is_told_with_the_legal_values(cli, arguments, words):
    refused(cli(*arguments), *words)


@pytest.mark.parametrize(
    "extra",
    [
        "--network nan",
        "--network inf",
        "--network -1",
        "--network 0",
        "--memory-limit-gib nan",
        "--memory-limit-gib inf",
        "--memory-limit-gib -3",
        "--memory-limit-gib 1e9",
        "--tokens nan",
        "--tokens -1",
        "--time-budget nan",
        "--time-budget 0",
        "--gpus 0",
        "--gpus -8",
        "--gpus 99999999999",
        "--gpus 1.5",
        "--gpus-per-node 0",
        "--seq-len 0",
        "--seq-len -1",
        "--seq-len 99999999999999999",
        "--seq-len nan",
        "--global-batch 0",
        "--global-batch 99999999999999999999999",
        "--global-batch x",
        "--tp 0",
        "--tp -2",
        "--micro-batch 0",
        "--micro-batch -1",
        "--virtual-stages 0",
        "--ep 0",
        "--cp 0",
        "--top 0",
        "--precision int8",
        "--optimizer lion",
        "--attention slow",
        "--sharding zero3",
        "--recompute some",
        "--schedule zigzag",
        "--cluster dgx-h100",
    ],
)
def test_absurd_values_are_refused(cli, extra):
    flag = extra.split()[0]
    outcome = cli(*BIG, *extra.split())
    refused(outcome, "hint: ")
    assert flag in outcome.err or flag[2:].replace("-", "_") in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "--model", "llama-3.1-8b", *MACHINE, "--fsdp"], ["No such option: --fsdp"]),
        (["plan", "--modle", "llama-3.1-8b"], ["--model"]),
        (["plan", *MACHINE], ["Missing option '--model'"]),
        (["plan", "--model", "llama-3.1-8b"], ["--cluster or --gpu is missing"]),
        (["plan", "--model", "llama-3.1-8b", "--gpu", "h100-sxm"], ["--gpus is missing"]),
        (["estimate", *MACHINE], ["--model is missing"]),
        (["optimise"], ["No such command"]),
        (["explain"], ["plan"]),
        (["explain", "no-such-plan.json"], ["no such file"]),
        (["compare", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--gpus", "8,x"], ["'x'", "8,16,32"]),
        (["compare", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--gpus", "8,,16"], ["--gpus"]),
    ],
)
def test_usage_errors_name_the_option(cli, arguments, words):
    refused(cli(*arguments), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["the file is empty"]),
        ("   \n", ["empty"]),
        ('{"a": 1,\n "b": }', ["line 2"]),
        ('{"model_type": "llama",', ["line 1"]),
        ("[1, 2]", ["object"]),
        ('{"hidden_size": NaN}', ["NaN"]),
        ('{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}', ["mamba", "supported", "llama"]),
        ('{"a": 1}', ["block_kinds"]),
        ('{"model_type": "llama", "hidden_size": -4096}', ["hidden_size"]),
    ],
)
def test_a_broken_model_file_is_told_where_and_why(cli, tmp_path, text, words):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    refused(cli("plan", "--model", path, *MACHINE), str(path), *words)


@pytest.mark.parametrize("flag", ["--model", "--cluster"])
def test_a_folder_or_a_missing_file_is_told(cli, tmp_path, flag):
    rest = ["--model", "llama-3.1-8b"] if flag == "--cluster" else MACHINE
    refused(cli("plan", *rest, flag, f"{tmp_path}/none.json"), "no such file")
    refused(cli("plan", *rest, flag, tmp_path), "directory")


@pytest.mark.parametrize("command", [["estimate", "--plan"], ["explain"]])
def test_a_file_that_is_no_plan_is_refused(cli, tmp_path, command):
    path = tmp_path / "plan.json"
    for text, word in (("", "empty"), ("{", "line 1"), ('{"schema_version": 1}', "planner_version")):
        path.write_text(text, encoding="utf-8")
        refused(cli(*command, path), str(path), word)
    refused(cli(*command, tmp_path), "directory")


def test_a_plan_of_another_major_version_is_refused(cli, tmp_path, plan_file):
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**plan, "schema_version": 2}), encoding="utf-8")
    refused(cli("estimate", "--plan", path), "schema_version")
    path.write_text(json.dumps({**plan, "a_field_of_a_later_minor_version": 1}), encoding="utf-8")
    assert cli("estimate", "--plan", path).code == 0


@pytest.mark.parametrize(
    "extra",
    [
        "--tp 0",
        "--micro-batch 0",
        "--virtual-stages 0",
        "--expert-tp 0",
        "--sharding zero3",
        "--recompute some",
        "--schedule zigzag",
        "--sharding-group node",
        "--dp 3",
        "--virtual-stages 2",
        "--schedule interleaved",
    ],
)
def test_a_decision_that_breaks_a_rule_is_not_priced(cli, extra):
    refused(cli("estimate", "--model", "llama-3.1-8b", *MACHINE, *extra.split()))


def test_why_not_names_the_choices(cli, plan_file):
    refused(cli("explain", plan_file, "--why-not", "tp"), "tp=8")
    refused(cli("explain", plan_file, "--why-not", "color=1"), "sharding")
    refused(cli("explain", plan_file, "--why-not", "tp=x"), "tp=x")
    refused(cli("explain", plan_file, "--why-not", "tp=3"), "world-identity")


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--model", "lama-3.1-8b", *MACHINE],
        [*BIG, "--tp", "3"],
        [*BIG, "--fsdp"],
        ["plan", *MACHINE],
        ["explain", "no-such-plan.json"],
        ["compare", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--gpus", "8,x"],
        ["models", "show", "lama"],
        ["hardware", "show", "h10"],
        ["schema", "plans"],
    ],
)
def test_errors_are_json_under_json(cli, arguments):
    outcome = cli(*arguments, "--json")
    assert outcome.code == 2
    error = outcome.json()["error"]
    assert error["exit_code"] == 2
    assert error["message"]
    assert error["kind"] in ("bad_input", "unknown_name", "unsupported_feature")
    if error["kind"] == "unknown_name":
        assert "nearest" in error


def test_json_errors_carry_the_facts(cli):
    error = cli(*BIG, "--dp", "8", "--global-batch", "500", "--json").json()["error"]
    assert error["rule"] == "batch-identity"
    assert error["nearest_global_batches"] == [496, 504]
    error = cli(*BIG, "--tp", "3", "--json").json()["error"]
    assert error["rule"] == "world-identity"
    assert 8 in error["allowed"]
    assert 3 not in error["allowed"]


def test_the_exit_code_of_the_process_is_the_same(process):
    outcome = process(*BIG, "--tp", "3")
    refused(outcome, "world-identity")


def test_a_value_the_hint_names_works(cli, tmp_path: Path):
    wrong = cli(*BIG, "--dp", "8", "--global-batch", "500", "--json").json()["error"]
    for batch in wrong["nearest_global_batches"]:
        assert (
            cli("estimate", "--model", "llama-3.1-70b", *MACHINE, "--tp", 8, "--global-batch", batch).code
            == 0
        )
