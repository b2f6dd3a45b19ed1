"""The files of `examples/`, run on a tiny cache."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from configs.loader import load_config
from dataset.__main__ import main as dataset_main
from detectors import export_model
from examples import own_loop
from tests.fresh import stdout_of
from tests.stage2_distill.conftest import STUDENT, Configure, configure, folder  # noqa: F401
from tests.tiny import random_detector

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "examples").glob("[!_]*.py"))


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, "-m", f"examples.{name}", *map(str, arguments)]
    return stdout_of(command, cwd=ROOT, timeout=300)


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


def test_a_loop_of_one_s_own_begins_with_the_weights_and_images_of_the_config(
    configure: Configure,  # noqa: F811
    folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    data = shutil.copytree(folder / "data", tmp_path / "data")
    val = str(data / "annotations" / "instances_val.json")
    assert dataset_main(["unlabeled", "--annotations", val, "--output", str(data)]) == 0
    # As wide as the teacher's, so that its whole head fits.
    fpn = {**STUDENT["MODEL"]["FPN"], "OUT_CHANNELS": 8}
    path = configure(
        MODEL={"FPN": fpn, "WEIGHTS": str(tmp_path / "first.pth")},
        TEACHER={"INHERIT": "head", "SOURCE": "live"},
        DATASET={"FOLDER": str(data)},
        DATASETS={"UNLABELED": ["folder_unlabeled"]},
    )
    export_model(random_detector(load_config(str(path)), seed=4), tmp_path / "first.pth")
    own_loop.train(str(path), 0, tmp_path / "student.pth")
    first, teacher, student = (
        torch.load(file, weights_only=True)["model"]
        for file in (tmp_path / "first.pth", folder / "teacher.pth", tmp_path / "student.pth")
    )
    for name, tensor in student.items():
        wanted = teacher if name.startswith("head.") else first
        assert torch.equal(tensor, wanted[name]), name
    (losses,) = own_loop.train(str(path), 1, tmp_path / "student.pth")
    assert "loss_gid_feature" in losses
