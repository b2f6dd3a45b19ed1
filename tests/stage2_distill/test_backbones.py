"""Every backbone of ours teaches and learns: a dump of it, and a student's step from the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.loader import load_config
from dataset.scenes import CLASS_NAMES
from detectors import export_model
from stage1_dump.dump import run as dump
from tests.detectors.backbones.cases import NETS, model
from tests.stage2_distill.conftest import write_student
from tests.stage2_distill.runs import GID_LOSSES, OWN_LOSSES, losses_of, train
from tests.tiny import DETECTOR, random_detector, write_config


def of_the_data(net: str) -> dict[str, Any]:
    node = model(net)
    return {**node, "RETINANET": {**node["RETINANET"], "NUM_CLASSES": len(CLASS_NAMES)}}


@pytest.mark.parametrize(
    ("teacher", "student"), list(zip(NETS, [*list(NETS)[1:], *list(NETS)[:1]], strict=True))
)
def test_a_backbone_teaches_another(
    folder: Path, tmp_path: Path, teacher: str, student: str
) -> None:
    cfg = write_config(tmp_path / "teacher.yaml", {**DETECTOR, "MODEL": of_the_data(teacher)})
    export_model(random_detector(cfg, seed=1), tmp_path / "teacher.pth")
    path = write_student(
        folder,
        tmp_path,
        "exact",
        MODEL=of_the_data(student),
        CACHE={"LOCATION": str(tmp_path / "cache"), "PRESET": "exact"},
        TEACHER={"CONFIG": "teacher.yaml", "WEIGHTS": str(tmp_path / "teacher.pth")},
        DATASET={"MAX_IMAGES": 2},
        VIEWS={"NUM": 1},
        SOLVER={"IMS_PER_BATCH": 2, "MAX_ITER": 1},
    )
    dump(load_config(str(path)))
    losses = losses_of(train(path))
    assert losses.keys() == OWN_LOSSES | GID_LOSSES
    assert all(torch.isfinite(torch.tensor(values)).all() for values in losses.values())
