"""What only a process of its own shows: same bytes every time, nothing imported that is not used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMY = "--model gpt2 --gpu h100-sxm --gpus 1 --seq-len 1024 --global-batch 32"


@pytest.mark.parametrize(
    "arguments",
    [
        "plan --model llama-3.1-8b --gpu h100-sxm --gpus 16 --seq-len 8192 --global-batch 128 --json",
        "plan --model qwen3-30b-a3b --cluster dgx-h100 --gpus 16 --seq-len 4096 --global-batch 64 --json",
        "compare --model gpt2-xl --gpu h100-sxm,v100-32g --gpus 4,8 --seq-len 1024 --global-batch 64",
    ],
)
def test_the_same_question_gives_the_same_bytes(process, arguments):
    first = process(*arguments.split(), env={"PYTHONHASHSEED": "1"})
    second = process(*arguments.split(), env={"PYTHONHASHSEED": "20260"})
    assert first.code == second.code == 0
    assert first.out == second.out


def test_plan_files_are_the_same_bytes(process, tmp_path, small):
    for seed in "12":
        assert process("plan", *small, "-o", tmp_path / seed, env={"PYTHONHASHSEED": seed}).code == 0
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        ("--help", ["pulp", "networkx", "numpy", "pydantic", "yaml"]),
        ("--version", ["pulp", "networkx", "numpy", "pydantic", "yaml"]),
        ("plan --help", ["pulp", "networkx", "numpy", "yaml"]),
        (f"plan {ROOMY}", ["pulp", "networkx", "yaml"]),
        (f"plan {ROOMY} --json", ["pulp", "networkx", "yaml", "rich.table"]),
    ],
)
def test_what_is_not_used_is_not_imported(arguments, unwanted):
    code = (
        "import sys\n"
        "from planner.cli.app import run\n"
        "status = run(sys.argv[2].split())\n"
        "print(sorted(set(sys.argv[1].split()) & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, " ".join(unwanted), arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_package_imports_nothing_until_used():
    code = "import sys, planner; print(sorted({'numpy', 'pydantic', 'typer', 'pulp'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_a_pipe_is_plain_even_with_a_colour_terminal(process, small):
    outcome = process("estimate", *small, env={"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert outcome.code == 0
    assert "\x1b" not in outcome.out + outcome.err


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(
        f'"{sys.executable}" -m planner models list | head -n 1',
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("arguments", [f"plan {ROOMY}", f"plan {ROOMY} --json", "models list"])
def test_a_reader_that_is_gone_is_neither_a_difference_nor_a_bug(arguments):
    """Exit 1 says that a difference was found; who only reads the head of a screen has found none."""
    running = subprocess.Popen(
        [sys.executable, "-m", "planner", *arguments.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    running.stdout.close()
    errors = running.stderr.read().decode()
    running.stderr.close()
    assert running.wait(timeout=60) == 0, errors
    assert "Traceback" not in errors


def test_it_works_from_another_folder(process, small, tmp_path):
    outcome = process("plan", *small, "-o", "plan.json", cwd=tmp_path)
    assert outcome.code == 0
    assert (tmp_path / "plan.json").is_file()
    assert process("explain", "plan.json", cwd=tmp_path).code == 0
