"""The files of `examples/`, run on a tiny cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.stage2_distill.conftest import Configure, configure, folder  # noqa: F401

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "examples").glob("[!_]*.py"))


def run(name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 80


def test_records_have_pixels_boxes_and_what_the_teacher_said(folder: Path) -> None:  # noqa: F811
    lines = run("records", folder / "exact", folder / "data").splitlines()
    assert len(lines) == 24  # 12 images in two views
    assert all("'deltas'" in line and "'features'" in line for line in lines)


def test_a_torchvision_student_learns_from_the_cache(folder: Path) -> None:  # noqa: F811
    lines = run("torchvision_student", folder / "balanced", folder / "data", 3).splitlines()
    losses = [float(line.rsplit(" ", 1)[1]) for line in lines]
    assert len(losses) == 3 and all(0 < loss < 4 for loss in losses)


def test_the_step_works_in_a_loop_of_one_s_own(
    configure: Configure,  # noqa: F811
    tmp_path: Path,
) -> None:
    text = run("own_loop", configure("balanced"), 2, tmp_path / "student.pth")
    assert text.count("loss_gid_feature") == 2
    assert torch.load(tmp_path / "student.pth", weights_only=True).keys() == {"model"}
