"""AP50 by VOC's own rule stands beside COCO's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

from dataset.reading import load_annotations
from dataset.voc import write_voc
from detectors.command import register_data
from detectors.evaluate import evaluate, summary
from detectors.voc_rule import voc_evaluator
from tests.dataset.test_voc import Objects, make
from tests.tiny import DETECTOR, random_detector, write_config

CAT, OTHER_CAT, HARD = (1, 1, 20, 20), (1, 21, 20, 38), (31, 11, 50, 30)
OBJECTS: Objects = [("cat", CAT, 0), ("cat", OTHER_CAT, 0), ("cat", HARD, 1)]


def written(target: Path, year: str, objects: Objects = OBJECTS) -> Path:
    """The annotation file of one image of a year."""
    images: dict[str, Objects] = {"000001": objects}
    write_voc([make(target, year, {"test": images})], target / "out", classes=["cat"])
    return target / "out" / "annotations" / "instances_test.json"


# One of two cats is found, and the hard one does not count: precision 1 up to a recall of a half,
# and of the 11 recalls 0, 0.1, ..., 1 six are not beyond it.
@pytest.mark.parametrize(("year", "expected"), [("VOC2007", 600 / 11), ("VOC2012", 50.0)])
def test_ap50_is_that_of_the_year_s_rule(tmp_path: Path, year: str, expected: float) -> None:
    evaluator = voc_evaluator(load_annotations(written(tmp_path, year)))
    assert evaluator is not None
    found = Instances((40, 60))
    corners = torch.tensor([HARD, CAT, (41, 1, 55, 8)], dtype=torch.float32)
    corners[:, :2] -= 1  # VOC's last pixel is a part of the box
    found.pred_boxes = Boxes(corners)
    found.scores = torch.tensor([0.9, 0.8, 0.7])
    found.pred_classes = torch.tensor([0, 0, 0])
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert evaluator.evaluate() == {"voc": {"AP50-VOC": pytest.approx(expected)}}


def config(tmp_path: Path) -> CfgNode:
    retinanet = {**DETECTOR["MODEL"]["RETINANET"], "NUM_CLASSES": 1}
    content = {
        **DETECTOR,
        "MODEL": {**DETECTOR["MODEL"], "RETINANET": retinanet},
        "DATASET": {"FOLDER": str(tmp_path / "out")},
        "DATASETS": {"TRAIN": [], "TEST": ["folder_test"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 96},
        "OUTPUT_DIR": str(tmp_path / "output"),
    }
    return write_config(tmp_path / "detector.yaml", content)


def test_evaluation_gives_both_and_the_summary_shows_them(tmp_path: Path) -> None:
    written(tmp_path, "VOC2007")
    cfg = config(tmp_path)
    register_data(cfg, use=("TEST",))
    found = evaluate(cfg, random_detector(cfg, seed=1).eval())
    assert {"AP", "AP50", "AP75", "AP50-VOC"} <= found["folder_test"].keys()
    assert "AP50-VOC" in summary(found)


def test_a_set_of_other_images_than_voc_s_has_coco_s_ap_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "VOC2007")
    assert voc_evaluator(load_annotations(path)) is not None
    listed = tmp_path / "out" / "voc" / "ImageSets" / "Main" / "test.txt"
    listed.write_text(listed.read_text() + "VOC2007/000002\n")
    assert voc_evaluator(load_annotations(path)) is None
