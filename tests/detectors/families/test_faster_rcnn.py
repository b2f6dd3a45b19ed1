"""What a Faster R-CNN has beyond a dense head: proposals, the box head, sampling."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detectors import family_of
from detectors.detections import unpack_detections
from detectors.families import TwoStageFamily, faster_rcnn, two_stage
from detectors.families.faster_rcnn import FasterRcnnFamily
from detectors.families.two_stage import NUM_PROPOSALS, RcnnOutputs
from tests.tiny import DETECTOR, FASTER_RCNN, random_batch, random_detector, write_config

FAMILY = FasterRcnnFamily()
SIZES = [(64, 90), (60, 96), (96, 64)]
SECOND_STAGE = ("proposals", "proposal_scores", "proposal_deltas")


def configured(tmp_path: Path, **nodes: Any) -> CfgNode:
    """The tiny config, some keys of the nodes of MODEL changed."""
    model = dict(FASTER_RCNN)
    for name, value in nodes.items():
        model[name] = {**model.get(name, {}), **value} if isinstance(value, dict) else value
    return write_config(tmp_path / "detector.yaml", {**DETECTOR, "MODEL": model})


def run(model: nn.Module) -> RcnnOutputs:
    with torch.no_grad():
        return FAMILY.run(model.eval(), random_batch(SIZES))


def stock_second_stage(model: nn.Module, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals, logits and deltas (Q, K, 4) of one image, as the stock modules say in turn."""
    images = model.preprocess_image(random_batch(SIZES))
    features = model.backbone(images.tensor)
    proposals = model.proposal_generator(images, features, None)[0][number].proposal_boxes
    heads = model.roi_heads
    alone = [features[name][number : number + 1] for name in heads.box_in_features]
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_pooler(alone, [proposals])))
    return proposals.tensor, logits, deltas.view(len(logits), -1, 4)


@pytest.mark.parametrize(("rows", "agnostic"), [(40, False), (40, True), (NUM_PROPOSALS, False)])
def test_a_record_has_the_best_proposals_and_what_the_box_head_says_of_them(
    tmp_path: Path, rows: int, agnostic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_stage, "NUM_PROPOSALS", rows)
    cfg = configured(tmp_path, ROI_BOX_HEAD={"CLS_AGNOSTIC_BBOX_REG": agnostic})
    model = random_detector(cfg, seed=2)
    values = run(model).signals()
    for number in range(len(SIZES)):
        with torch.no_grad():
            boxes, logits, deltas = stock_second_stage(model, number)
        count = min(len(boxes), rows)
        assert 40 <= count < NUM_PROPOSALS
        torch.testing.assert_close(values["proposals"][number, :count], boxes[:count])
        torch.testing.assert_close(values["proposal_scores"][number, :count], logits[:count])
        for row in range(count):
            best = max(range(3), key=lambda k: float(logits[row, k]))
            wanted = deltas[row, 0 if agnostic else best]
            torch.testing.assert_close(values["proposal_deltas"][number, row], wanted)
        for name in SECOND_STAGE:
            assert not values[name][number, count:].any()


def test_the_second_stage_is_of_all_levels_whichever_are_kept(tmp_path: Path) -> None:
    outputs = run(random_detector(configured(tmp_path), seed=2))
    kept = outputs.on_levels([1, 2, 4])
    assert [level.shape[-1] for level in kept.features] == [12, 6, 2]
    for name in SECOND_STAGE:
        assert torch.equal(kept.signals()[name], outputs.signals()[name])


def test_training_runs_no_second_stage_of_its_own(tmp_path: Path) -> None:
    model = random_detector(configured(tmp_path), seed=2).train()
    outputs = FAMILY.run(model, random_batch(SIZES))
    assert outputs.signals().keys() == {"features", "scores", "deltas"}


@pytest.mark.parametrize("kept", [range(5), [1, 2, 3, 4]], ids=["all", "without p2"])
def test_the_box_head_looks_at_given_boxes_with_all_of_its_levels(
    tmp_path: Path, kept: list[int]
) -> None:
    model = random_detector(configured(tmp_path), seed=2)
    outputs = run(model)
    boxes = outputs.signals()["proposals"]
    assert isinstance(family_of(configured(tmp_path)), TwoStageFamily)
    with torch.no_grad():
        logits, deltas = FAMILY.box_head_outputs(model, outputs.on_levels(kept), boxes)
    assert logits.shape == (3, NUM_PROPOSALS, 4) and deltas.shape == (3, NUM_PROPOSALS, 3, 4)
    for number in range(len(SIZES)):
        with torch.no_grad():
            found, theirs, their_deltas = stock_second_stage(model, number)
        torch.testing.assert_close(logits[number, : len(found)], theirs)
        torch.testing.assert_close(deltas[number, : len(found)], their_deltas)


def test_anchors_beyond_the_boundary_are_neither_matched_nor_assigned(tmp_path: Path) -> None:
    model = random_detector(configured(tmp_path, RPN={"BOUNDARY_THRESH": 0}), seed=2)
    outputs, targets = run(model), [item["instances"] for item in random_batch(SIZES)]
    step = FAMILY.training_step(model, outputs, targets)
    boxes = outputs.anchors[::7].expand(3, -1, -1)
    everywhere = torch.ones(outputs.logits.shape[:2], dtype=torch.bool)
    assigned = FAMILY.assign_boxes(
        model, outputs, boxes, torch.ones(boxes.shape[:2], dtype=torch.bool), everywhere
    )
    for number, (height, width) in enumerate(SIZES):
        x1, y1, x2, y2 = outputs.anchors.unbind(1)
        inside = (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)
        assert not step.positive[number, ~inside].any()
        assert not assigned[number, ~inside].any() and assigned[number, inside].any()


def test_global_counts_weigh_each_stage_by_what_all_ranks_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_detector(configured(tmp_path), seed=2).train()
    batch = random_batch(SIZES)
    targets = [item["instances"] for item in batch]
    found = []
    # As if others sampled three times as many, of five times as many images: the means of both
    # ranks are twice our own, and three times.
    means = torch.tensor([2.0, 3.0])
    monkeypatch.setattr(faster_rcnn, "mean_over_ranks", lambda own: own * means)
    for together in (False, True):
        torch.manual_seed(7)
        with EventStorage():
            outputs = FAMILY.run(model, batch)
            step = FAMILY.training_step(model, outputs, targets, global_counts=together)
            found.append(step.losses())
    for name, loss in found[0].items():
        of_boxes = name in ("loss_cls", "loss_box_reg")
        torch.testing.assert_close(found[1][name], loss / (2 if of_boxes else 3))


@pytest.mark.parametrize("key", ["MASK_ON", "KEYPOINT_ON"])
def test_of_another_r_cnn_the_boxes_are_taken_and_one_line_says_so(
    tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = configured(tmp_path, **{key: True}, ROI_MASK_HEAD={"CONV_DIM": 4, "NUM_CONV": 1})
    model = random_detector(cfg, seed=2)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert FAMILY.signals(cfg) == FAMILY.signals(configured(tmp_path))
            assert FAMILY.identity(cfg) == FAMILY.identity(configured(tmp_path))
    (line,) = caplog.messages
    assert line.startswith(f"MODEL.{key}: the boxes are used alone")
    outputs = run(model)
    ours = FAMILY.detections(model, outputs, 5)
    model.roi_heads.mask_on = model.roi_heads.keypoint_on = False
    with torch.no_grad():
        stock = [found["instances"] for found in model(random_batch(SIZES))]
    for rows, theirs in zip(ours, stock, strict=True):
        mine = unpack_detections(rows, theirs.image_size)
        assert torch.equal(mine.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(mine.scores, theirs.scores) and len(mine)


def test_half_precision_outputs_are_proposed_from_on_a_cpu(tmp_path: Path) -> None:
    model = random_detector(configured(tmp_path), seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = run(model)
    assert outputs.logits.dtype == torch.bfloat16
    assert {one.dtype for name, one in outputs.signals().items() if name in SECOND_STAGE} == {
        torch.float32
    }
    assert Boxes(outputs.signals()["proposals"][0]).nonempty().any()
