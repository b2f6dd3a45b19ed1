"""AP50 by VOC's own rule stands beside COCO's."""

from __future__ import annotations

from collections.abc import Sequence
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


def written(
    target: Path, year: str, objects: Objects = OBJECTS, classes: Sequence[str] = ("cat",)
) -> Path:
    """The annotation file of one image of a year."""
    images: dict[str, Objects] = {"000001": objects}
    write_voc([make(target, year, {"test": images})], target / "out", classes=classes)
    return target / "out" / "annotations" / "instances_test.json"


# One of two cats is found, and the hard one does not count: precision 1 up to a recall of a half,
# and of the 11 recalls 0, 0.1, ..., 1 six are not beyond it.
@pytest.mark.parametrize(("year", "expected"), [("VOC2007", 600 / 11), ("VOC2012", 50.0)])
def test_ap50_is_that_of_the_year_s_rule(tmp_path: Path, year: str, expected: float) -> None:
    found = judge(written(tmp_path, year), [(HARD, 0), (CAT, 0), ((41, 1, 55, 8), 0)])
    assert found == {"voc": {"AP50-VOC": pytest.approx(expected)}}


def judge(
    annotations: Path, detections: Sequence[tuple[tuple[int, ...], int]]
) -> dict[str, dict[str, float]] | None:
    """Evaluate detections, corners as VOC counts them and a class number, by falling score."""
    evaluator = voc_evaluator(load_annotations(annotations))
    assert evaluator is not None
    found = Instances((40, 60))
    corners = torch.tensor([box for box, _ in detections], dtype=torch.float32)
    corners[:, :2] -= 1  # VOC's last pixel is a part of the box
    found.pred_boxes = Boxes(corners)
    found.scores = torch.linspace(0.9, 0.7, len(detections))
    found.pred_classes = torch.tensor([number for _, number in detections])
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    return evaluator.evaluate()


@pytest.mark.parametrize("year", ["VOC2007", "VOC2012"])
@pytest.mark.parametrize("dogs", [[], [("dog", HARD, 1)]])
def test_a_class_of_no_object_or_of_hard_ones_counts_as_0(
    tmp_path: Path, year: str, dogs: Objects
) -> None:
    path = written(tmp_path, year, [("cat", CAT, 0), *dogs], ["dog", "cat"])
    found = judge(path, [(HARD, 0), (OTHER_CAT, 0), (CAT, 1)])
    assert found == {"voc": {"AP50-VOC": pytest.approx(50)}}


def test_the_folder_s_name_may_have_braces(tmp_path: Path) -> None:
    found = judge(written(tmp_path / "{set}", "VOC2012", [("cat", CAT, 0)]), [(CAT, 0)])
    assert found == {"voc": {"AP50-VOC": pytest.approx(100)}}


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
