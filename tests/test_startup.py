"""Commands that Python itself keeps from starting say why, in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def line_of(option: str, *command: str) -> str:
    """What a command that fails says, under an option of Python's."""
    done = subprocess.run(
        [sys.executable, option, "-m", *command],
        cwd=ROOT, env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    "command",
    [
        ("storage", "info", "cache"),
        ("dataset", "check", "--images", "a", "--annotations", "b"),
        ("detectors", "train", "--config-file", "a.yaml"),
        ("stage1_dump", "status", "cache"),
        ("stage2_distill", "train", "--config-file", "a.yaml"),
    ],
)
def test_outside_of_the_environment_a_command_says_what_to_activate(
    command: tuple[str, ...],
) -> None:
    line = line_of("-S", *command)  # without the packages of the environment
    assert "No module named" in line
    assert "activate the environment that has it" in line


@pytest.mark.parametrize(
    "command",
    [
        ("detectors", "train", "--config-file", "a.yaml"),
        ("dataset", "show", "--output", "a.png", "--config-file", "a.yaml"),
    ],
)
def test_without_docstrings_detectron2_is_not_imported(command: tuple[str, ...]) -> None:
    assert "expected at most -O" in line_of("-OO", *command)
