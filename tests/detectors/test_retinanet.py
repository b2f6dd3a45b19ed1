"""RetinaNet taken apart gives what RetinaNet as a whole gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from detectors import family_of
from tests.tiny import DETECTOR, random_batch, random_detector, write_config

# Two padded sizes, and P7 of one position in the last.
SIZES = [[(64, 90), (60, 96)], [(96, 64)], [(128, 128)]]


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    return write_config(tmp_path / "detector.yaml", DETECTOR)


@pytest.fixture
def model(cfg: CfgNode) -> nn.Module:
    return random_detector(cfg, seed=2)


@pytest.mark.parametrize("sizes", SIZES)
def test_losses_equal_stock_training(
    cfg: CfgNode, model: nn.Module, sizes: list[tuple[int, int]]
) -> None:
    batch, family = random_batch(sizes), family_of(cfg)
    model.train()
    with EventStorage():
        stock = model(batch)
        # A running average of the number of positives: both ways must start from the same.
        del model.loss_normalizer
        outputs = family.run(model, family.preprocess(model, batch))
        labels, boxes = family.assign(model, outputs, [x["instances"] for x in batch])
        ours = family.losses(model, outputs, labels, boxes)
    assert ours.keys() == stock.keys()
    for name in stock:
        torch.testing.assert_close(ours[name], stock[name])


@pytest.mark.parametrize("sizes", SIZES)
def test_detections_equal_stock_inference(
    cfg: CfgNode, model: nn.Module, sizes: list[tuple[int, int]]
) -> None:
    batch, family = random_batch(sizes), family_of(cfg)
    model.eval()
    with torch.no_grad():
        stock = [found["instances"] for found in model(batch)]
        ours = family.detections(model, family.run(model, family.preprocess(model, batch)))
    assert sum(map(len, stock)) > 0
    for mine, theirs in zip(ours, stock, strict=True):
        assert torch.equal(mine.scores, theirs.scores)
        assert torch.equal(mine.pred_classes, theirs.pred_classes)
        assert torch.equal(mine.pred_boxes.tensor, theirs.pred_boxes.tensor)


def test_detections_leave_the_logits_alone_where_a_level_is_one_position(
    cfg: CfgNode, model: nn.Module
) -> None:
    family = family_of(cfg)
    model.eval()
    with torch.no_grad():
        outputs = family.run(model, family.preprocess(model, random_batch([(128, 128)])))
        before = outputs.logits.clone()
        family.detections(model, outputs)
    assert outputs.level_sizes[-1] == (1, 1)
    assert torch.equal(outputs.logits, before)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (128, 128), (160, 224)])
def test_geometry_from_the_config_is_that_of_the_model(
    cfg: CfgNode, model: nn.Module, size: tuple[int, int]
) -> None:
    family = family_of(cfg)
    geometry = family.geometry(cfg, *size)
    with torch.no_grad():
        outputs = family.run(model, family.preprocess(model, random_batch([size])))
    assert family.size_divisibility(cfg) == model.backbone.size_divisibility
    assert list(geometry.level_sizes) == outputs.level_sizes
    raw = outputs.raw()
    assert raw.features.shape == (1, geometry.channels, geometry.num_positions)
    assert raw.logits.shape == (1, geometry.num_boxes, geometry.num_classes)
    assert raw.deltas.shape == (1, geometry.num_boxes, 4)


def test_an_unknown_detector_is_refused_with_the_known_ones(cfg: CfgNode) -> None:
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    with pytest.raises(ValueError, match=r"PanopticFPN.*supports: RetinaNet"):
        family_of(cfg)


@pytest.mark.parametrize(
    ("node", "key", "value", "matters"),
    [
        ("RETINANET", "SMOOTH_L1_LOSS_BETA", 0.7, False),
        ("RETINANET", "NMS_THRESH_TEST", 0.9, True),
        ("FPN", "NORM", "GN", True),
    ],
)
def test_the_teachers_config_fingerprint_holds_what_changes_its_outputs(
    cfg: CfgNode, node: str, key: str, value: Any, matters: bool
) -> None:
    from detectors import config_fingerprint

    before = config_fingerprint(cfg)
    cfg.MODEL[node][key] = value
    assert (config_fingerprint(cfg) != before) == matters
