"""Every family's detector, taken apart, gives what detectron2's gives as a whole."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import fcos, retinanet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from fvcore.nn import sigmoid_focal_loss
from torch import nn

from detectors import DenseOutputs, DetectorFamily, config_fingerprint, export_model, family_of
from detectors.detections import unpack_detections
from tests.detectors.families import own_models  # noqa: F401 (registers its models)
from tests.detectors.families.slow_rules import RULES
from tests.tiny import DETECTOR, FASTER_RCNN, FCOS, random_batch, random_detector, write_config

# What is changed in MODEL; a family of its own adds a line.
DETECTORS: dict[str, dict[str, Any]] = {
    "RetinaNet": {},
    "a class that derives from it": {"META_ARCHITECTURE": "DeeperRetinaNet"},
    "FCOS": FCOS,
    "a function, its family stated": {"META_ARCHITECTURE": "build_deeper", "FAMILY": "RetinaNet"},
    "Faster R-CNN": FASTER_RCNN,
}
# Two padded sizes, P7 of one position in the last; the last image of each has no objects.
SIZES = [[(64, 90), (60, 96), (96, 64)], [(96, 64)], [(128, 128), (128, 128)]]

sizes_of_batches = pytest.mark.parametrize("sizes", SIZES)


@pytest.fixture(params=list(DETECTORS))
def cfg(request: pytest.FixtureRequest, tmp_path: Path) -> CfgNode:
    model = {**DETECTOR["MODEL"], **DETECTORS[request.param]}
    return write_config(tmp_path / "detector.yaml", {**DETECTOR, "MODEL": model})


@pytest.fixture
def model(cfg: CfgNode) -> nn.Module:
    return random_detector(cfg, seed=2)


@pytest.fixture
def family(cfg: CfgNode) -> DetectorFamily:
    return family_of(cfg)


@pytest.fixture
def outputs(family: DetectorFamily, model: nn.Module, sizes: list[tuple[int, int]]) -> DenseOutputs:
    with torch.no_grad():
        return family.run(model.eval(), random_batch(sizes))


@sizes_of_batches
def test_losses_and_gradients_are_detectron2_s_bit_for_bit(
    family: DetectorFamily,
    model: nn.Module,
    sizes: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The scripted one, which training here replaces too, rounds otherwise once it is optimised.
    for module in (retinanet, fcos):
        monkeypatch.setattr(module, "sigmoid_focal_loss_jit", sigmoid_focal_loss)
    batch, theirs = random_batch(sizes), copy.deepcopy(model).train()
    model.train()
    targets = [item["instances"] for item in batch]
    for _ in range(2):  # the second step begins with a running average
        with EventStorage():
            torch.manual_seed(7)
            stock = theirs(batch)
            torch.manual_seed(7)
            ours = family.training_step(model, family.run(model, batch), targets).losses()
        assert ours.keys() == stock.keys()
        assert all(torch.equal(ours[name], stock[name]) for name in stock)
    for losses in (stock, ours):
        torch.stack(list(losses.values())).sum().backward()
    for mine, stocks in zip(model.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None and torch.equal(mine.grad, stocks.grad)


def nearest_of_each_level(self: Any, anchors: list[Boxes], objects: list[Instances]) -> Any:
    """Of the user's: the three places of each level whose centres are nearest learn an object."""
    boxes = [Boxes.cat(anchors).tensor for _ in objects]
    labels = []
    for one in objects:
        levels = [torch.full((len(level),), self.num_classes) for level in anchors]
        for kind, centre in zip(one.gt_classes, one.gt_boxes.get_centers(), strict=True):
            for label, level in zip(levels, anchors, strict=True):
                apart = (level.get_centers() - centre).norm(dim=1)
                label[apart.topk(min(3, len(level)), largest=False).indices] = kind
        labels.append(torch.cat(levels))
    return labels, boxes


def weighted_by_level(self: Any, anchors: list[Boxes], logits: Any, labels: Any, *rest: Any) -> Any:
    """Of the user's: one more loss, in which coarse levels weigh more."""
    found = super(type(self), self).losses(anchors, logits, labels, *rest)
    levels = zip(anchors, logits, rest[0], strict=True)
    weighted = [len(logits) / len(level) * (a.sum() + b.sum()) for level, a, b in levels]
    return {**found, "loss_own": torch.stack(weighted).sum()}


def centres_of_coarse_levels(self: Any, anchors: list[Boxes], boxes: Any) -> Any:
    """Of the user's: the finest level's positions are less of a centre."""
    found = fcos.FCOS.compute_ctrness_targets(self, anchors, boxes)
    found[:, : len(anchors[0])] /= len(anchors)
    return found


@pytest.mark.parametrize(
    ("cfg", "name", "rule"),
    [
        (family, name, rule)
        for family in ("RetinaNet", "FCOS")
        for name, rule in (
            ("label_anchors", nearest_of_each_level),
            ("losses", weighted_by_level),
            ("compute_ctrness_targets", centres_of_coarse_levels),
        )
        if family == "FCOS" or rule is not centres_of_coarse_levels
    ],
    indirect=["cfg"],
)
def test_a_class_s_own_rules_are_given_the_levels_as_in_its_own_training(
    family: DetectorFamily, model: nn.Module, name: str, rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (retinanet, fcos):
        monkeypatch.setattr(module, "sigmoid_focal_loss_jit", sigmoid_focal_loss)
    batch, stock = random_batch(SIZES[0]), copy.deepcopy(model).train()
    own = type("Own", (type(model),), {name: rule})
    monkeypatch.setattr(model, "__class__", own)
    theirs = copy.deepcopy(model).train()
    targets = [item["instances"] for item in batch]
    with EventStorage():
        wanted, without = theirs(batch), stock(batch)
        step = family.training_step(model.train(), family.run(model, batch), targets)
        losses = step.losses()
    torch.testing.assert_close(losses, wanted)
    assert losses != without


@sizes_of_batches
def test_places_are_positive_as_the_losses_have_them(
    family: DetectorFamily, model: nn.Module, outputs: DenseOutputs, sizes: list[tuple[int, int]]
) -> None:
    targets = [item["instances"] for item in random_batch(sizes)]
    for target in targets:
        target.gt_classes.zero_()  # a class of which to make a mistake with labels
    step = family.training_step(model, outputs, targets)
    assert step.positive.shape == outputs.logits.shape[:2]
    for number, target in enumerate(targets):
        boxes = target.gt_boxes.tensor.numpy()
        positive = RULES[family.name].trained(boxes, outputs)
        np.testing.assert_array_equal(step.positive[number].numpy(), positive)
    assert not step.positive[-1].any() and (len(sizes) == 1 or step.positive.any())


@sizes_of_batches
def test_detections_are_detectron2_s_and_change_nothing(
    family: DetectorFamily, model: nn.Module, outputs: DenseOutputs, sizes: list[tuple[int, int]]
) -> None:
    before = copy.deepcopy(outputs)
    with torch.no_grad():
        stock = [found["instances"] for found in model(random_batch(sizes))]
        rows = family.detections(model, outputs, 7)
    assert rows.shape == (len(sizes), 7, 6) and sum(map(len, stock)) > 0
    for found, theirs in zip(rows, stock, strict=True):
        mine = unpack_detections(found, theirs.image_size)
        assert torch.equal(mine.scores, theirs.scores)
        assert torch.equal(mine.pred_classes, theirs.pred_classes)
        assert torch.equal(mine.pred_boxes.tensor, theirs.pred_boxes.tensor)
    signals = before.signals()
    assert all(torch.equal(value, signals[name]) for name, value in outputs.signals().items())


@sizes_of_batches
def test_boxes_are_assigned_as_image_by_image(
    family: DetectorFamily, model: nn.Module, outputs: DenseOutputs, sizes: list[tuple[int, int]]
) -> None:
    generator = torch.Generator().manual_seed(5)
    corners = torch.rand(len(sizes), 4, 2, generator=generator) * 60
    sides = 8 + torch.rand(corners.shape, generator=generator) * 40
    boxes = torch.cat([corners, corners + sides], dim=2)
    valid = torch.rand(boxes.shape[:2], generator=generator) < 0.7
    usable = torch.rand(outputs.logits.shape[:2], generator=generator) < 0.7
    valid[0, 0] = True
    found = family.assign_boxes(model, outputs, boxes, valid, usable)
    assert found.any()
    for number in range(len(sizes)):
        some = boxes[number][valid[number]].numpy()
        rules = RULES[family.name]
        wanted = rules.assigned(some, outputs.anchors.numpy(), usable[number].numpy())
        np.testing.assert_array_equal(found[number].numpy(), wanted)


@pytest.mark.parametrize("sizes", [[(64, 96)], [(96, 64)], [(128, 128)], [(160, 224)]])
def test_sizes_from_the_config_are_those_of_the_model(
    family: DetectorFamily, cfg: CfgNode, model: nn.Module, outputs: DenseOutputs
) -> None:
    geometry = family.geometry(cfg, *outputs.image_sizes[0])
    assert family.size_divisibility(cfg) == model.backbone.size_divisibility
    assert list(geometry.level_sizes) == outputs.level_sizes
    assert {int(level.shape[1]) for level in outputs.features} == {family.channels(cfg)}
    values = outputs.signals()
    assert values.keys() == {signal.name for signal in family.signals(cfg)}
    for signal in family.signals(cfg):
        assert values[signal.name].shape == (1, *signal.shape(geometry))
    shapes = model.backbone.output_shape()
    assert family.levels(cfg) == {name: shapes[name].stride for name in family.levels(cfg)}
    assert set(family.pooled_levels(cfg)) <= set(family.levels(cfg))


def test_head_and_backbone_are_the_whole_model(family: DetectorFamily, model: nn.Module) -> None:
    parts = [*model.backbone.parameters(), *family.head(model).parameters()]
    assert sorted(map(id, parts)) == sorted(map(id, model.parameters()))


def test_the_neck_is_what_makes_the_pyramid_of_the_network_s_maps(
    family: DetectorFamily, model: nn.Module
) -> None:
    whole = model.backbone.state_dict(keep_vars=True)
    neck = family.neck(model).state_dict(keep_vars=True)
    assert neck and all(whole[name] is tensor for name, tensor in neck.items())
    assert {name for name in whole if name not in neck} == {
        f"bottom_up.{name}" for name in model.backbone.bottom_up.state_dict()
    }


def test_an_exported_student_is_a_checkpoint_of_detectron2_s(
    cfg: CfgNode, model: nn.Module, tmp_path: Path
) -> None:
    export_model(model, tmp_path / "student.pth")
    stock = build_model(cfg)
    rest = DetectionCheckpointer(stock).load(str(tmp_path / "student.pth"))
    assert not rest
    loaded = stock.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor)


def test_what_is_asked_of_the_config_alone_is_fit_for_json_and_the_same_again(
    family: DetectorFamily, cfg: CfgNode
) -> None:
    for ask in (family.identity, family.pairing):
        assert json.loads(json.dumps(ask(cfg))) == json.loads(json.dumps(ask(cfg.clone())))
    assert family.num_classes_key.startswith("MODEL.")
    shared = family.pairing(cfg)
    assert shared.keys() == {*(one.name for one in family.signals(cfg)), "detections"}
    assert shared["features"] == {} and shared["detections"] == {"number of classes": 3}


# By family: a key that acts in training alone, and one that changes what is computed.
KEYS = {
    "RetinaNet": ("RETINANET.SMOOTH_L1_LOSS_BETA", "RETINANET.NMS_THRESH_TEST"),
    "FCOS": ("FCOS.FOCAL_LOSS_GAMMA", "FCOS.NMS_THRESH_TEST"),
    "FasterRCNN": ("ROI_BOX_HEAD.SMOOTH_L1_BETA", "RPN.NMS_THRESH"),
}


def test_a_teacher_s_fingerprint_holds_what_changes_its_outputs(
    family: DetectorFamily, cfg: CfgNode
) -> None:
    in_training, always = KEYS[family.name]
    fingerprints = []
    for key, value in (("", None), (in_training, 0.7), (always, 0.9), ("FPN.NORM", "GN")):
        if key:
            cfg.merge_from_list([f"MODEL.{key}", value])
        fingerprints.append(json.dumps(config_fingerprint(cfg)))
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 3
