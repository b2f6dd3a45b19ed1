"""A tiny teacher, its caches, and configs of students that learn from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from configs.loader import load_config
from dataset.synthetic import SyntheticConfig, write_synthetic
from detectors import export_model
from stage1_dump.dump import run as dump
from tests.tiny import DETECTOR, random_detector, write_config

Configure = Callable[..., Path]

# The student has other channel counts than the teacher, so that the adaptation layer must act.
STUDENT: dict[str, Any] = {
    **DETECTOR,
    "MODEL": {**DETECTOR["MODEL"], "FPN": {**DETECTOR["MODEL"]["FPN"], "OUT_CHANNELS": 12}},
    "DATASETS": {"TRAIN": ["folder_train"], "TEST": ["folder_val"]},
    "DATALOADER": {"NUM_WORKERS": 0},
    "INPUT": {"MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 96},
    "SOLVER": {"IMS_PER_BATCH": 3, "MAX_ITER": 3, "BASE_LR": 0.01, "CHECKPOINT_PERIOD": 2},
    "VIEWS": {"SCALES": [64, 80], "MAX_SIZE": 96, "NUM": 2, "SEED": 11},
    "SEED": 3,
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/`, `teacher.yaml`, `teacher.pth`, and complete caches `exact` and `balanced`."""
    folder = tmp_path_factory.mktemp("distill")
    write_synthetic(folder / "data", SyntheticConfig(train=12, val=3, size=90), workers=1)
    detector = {**DETECTOR, "MODEL": {**DETECTOR["MODEL"]}}
    detector["MODEL"]["RETINANET"] = {**detector["MODEL"]["RETINANET"], "NUM_CLASSES": _classes()}
    cfg = write_config(folder / "teacher.yaml", detector)
    export_model(random_detector(cfg, seed=1), folder / "teacher.pth")
    for preset in ("exact", "balanced"):
        path = write_student(folder, folder, preset, CACHE={"PRESET": preset})
        dump(load_config(str(path)))
    return folder


@pytest.fixture
def configure(folder: Path, tmp_path: Path) -> Configure:
    """Write a student's config; keyword arguments such as `VIEWS={"NUM": 1}` change its nodes."""

    def write(preset: str = "exact", **nodes: dict[str, Any]) -> Path:
        return write_student(folder, tmp_path, preset, **nodes)

    return write


def write_student(folder: Path, target: Path, preset: str, **nodes: dict[str, Any]) -> Path:
    """Write `student.yaml` into `target`, for the data, teacher and caches of `folder`."""
    content = {
        key: dict(value) if isinstance(value, dict) else value for key, value in STUDENT.items()
    }
    retinanet = {**content["MODEL"]["RETINANET"], "NUM_CLASSES": _classes()}
    content["MODEL"] = {**content["MODEL"], "RETINANET": retinanet}
    content["DATASET"] = {"FOLDER": str(folder / "data")}
    content["TEACHER"] = {
        "CONFIG": str(folder / "teacher.yaml"),
        "WEIGHTS": str(folder / "teacher.pth"),
        "BATCH": 2,
    }
    content["CACHE"] = {
        "LOCATION": str(folder / preset), "PRESET": preset, "SHARD_RECORDS": 3,
    }  # fmt: skip
    content["OUTPUT_DIR"] = str(target / "output")
    for node, values in nodes.items():
        if isinstance(values, dict):
            content[node] = {**content.get(node, {}), **values}
        else:
            content[node] = values
    path = target / "student.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _classes() -> int:
    from dataset.scenes import CLASS_NAMES

    return len(CLASS_NAMES)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from one state of the generators, whatever ran before."""
    torch.manual_seed(0)
