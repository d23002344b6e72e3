"""The part of bash that launch scripts use, against bash itself; and what stays unknown."""

from __future__ import annotations

import subprocess

import pytest

from planner.launchers.shell import Script, read_shell

SHOW = "show() { for word; do printf '%s\\n' \"$word\"; done; }\n"


def words(script: Script) -> list[str]:
    return [word.text for word in script.commands[-1][1:]]


@pytest.mark.parametrize(
    "text",
    [
        'A=4\nB=${A}\nshow --x $A "$B" \'$A\' "a b" c\\ d',
        "A=2; B=3\nshow $((A*B)) $(($A + ${B})) $((24/A/B))",
        'ARGS=(\n  --one 1  # first\n  --two "2 3"\n)\nshow "${ARGS[@]}" ${ARGS[@]}',
        "ARGS=(--one 1)\nARGS+=(--two 2 'x|y*3')\nshow \"${ARGS[@]}\"",
        'ARGS="\n  --one 1 \\\n  --two 2\n"\nshow $ARGS --three',
        "show a \\\n  b \\\n  c",
        "A=${A_NOT_SET:-5} && show ${B_NOT_SET:-$A} ${C_NOT_SET-x}",
        "A=1\nA+=2\nshow $A x$A${A}y",
        "show 'Et*3|t*4' \"a#b\" c#d # e",
        "export A=7\nshow $A",
        'D=fp8\nif [[ "$D" == "fp8" ]]; then\n  A=1\nelse\n  A=2\nfi\nshow $A',
        'D=x; if [ $D = y ] || [ -z "$D" ]; then A=1; elif [[ $D != y ]]; then A=2; else A=3; fi\nshow $A',
        "N=4; if [ $N -gt 2 ] && [ ! $N -eq 4 ]; then A=1; else A=2; fi; show $A",
        "if [ 1 = 2 ]; then if [ 1 = 1 ]; then A=1; fi; else A=2; fi; show $A",
        "A=('--x 1' '--y')\nshow ${A[@]}",
        "A='1 2'\nshow \"$A\" $A pre$A",
    ],
)
def test_words_are_those_of_bash(text):
    done = subprocess.run(["bash", "-c", SHOW + text], capture_output=True, text=True, check=True)
    assert words(read_shell(text)) == done.stdout.splitlines()


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ("show $A", "$A is not set in the file"),
        ("A=$(cat x)\nshow $A", "the output of a command"),
        ("A=`cat x`\nshow $A", "the output of a command"),
        ("if [ $X ]; then\n  A=1\nfi\nshow $A", "set inside a condition (line 2)"),
        ("if [ $X = 1 ]; then A=1; else A=2; fi\nshow $A", "set inside a condition"),
        ("if [ 1 = 1 ]; then if [ $X ]; then A=1; fi; fi\nshow $A", "set inside a condition"),
        ("if [ $X = 1 ]; then :; elif [ 1 = 1 ]; then A=2; fi\nshow $A", "set inside a condition"),
        ("for A in 1 2; do\n  B=$A\ndone\nshow $B", "$A is not set"),
        ("case $X in a) A=1;; esac\nA=2\nshow ${A%x}", "the expansion ${A%x}"),
        ("show $((A*2))", "$A is not set in the file"),
        ("A=(1)\nif true; then A+=(2); fi\nshow ${A[@]}", "set inside a condition"),
        ("show ${A[@]}", "the array A is not set"),
    ],
)
def test_what_the_text_does_not_tell_stays_in_doubt(text, doubt):
    word = read_shell(text).commands[-1][-1]
    assert doubt in word.doubt


def test_defaults_that_were_used_are_kept_with_the_word():
    script = read_shell("A=${B:-4}\nshow $A x")
    assert script.commands[-1][1].defaults == ("B=4",)
    assert script.commands[-1][2].defaults == ()


def test_exports_unsets_and_sbatch_options():
    script = read_shell("#SBATCH --nodes=4\nexport A=1 B=2\nC=3\nexport C\nunset D\n")
    assert {name: word.text for name, word in script.exported.items()} == {"A": "1", "B": "2", "C": "3"}
    assert script.unset == {"D"}
    assert script.sbatch == ["--nodes=4"]
