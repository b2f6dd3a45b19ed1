"""Final boxes of a batch at once are those that detectron2 finds image by image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detectors import DenseOutputs, DetectorFamily, family_of
from detectors.families.fcos import FcosOutputs
from tests.tiny import DETECTOR, FCOS, random_batch, random_detector, write_config

# One padded size, 96x96, P7 of one position.
SIZES = [(64, 90), (60, 96), (96, 64), (96, 96)]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is changed of random outputs and of the detector's own settings.

    Attributes:
        images: those in which something is found; elsewhere no score is above the threshold.
    """

    logits: Callable[[Tensor], Tensor] = torch.clone
    deltas: Callable[[Tensor], Tensor] = torch.clone
    images: tuple[int, ...] = (0, 1, 2, 3)
    threshold: float = 0.5
    most: int = 1000
    kept: int = 20


def far_in_one_image(deltas: Tensor) -> Tensor:
    """So far that boxes of its second and third class are rounded to pixels and more in NMS."""
    deltas = deltas.clone()
    deltas[1, ::2] *= 1e5
    return deltas


CASES = {
    "few": Case(threshold=0.9),
    "more than the best of a level": Case(threshold=0.1, most=20),
    # Above 1,000 boxes torchvision goes class by class on a CPU.
    "more than are moved apart": Case(threshold=0.1, kept=1000),
    "equal scores": Case(logits=torch.round, threshold=0.1, most=50),
    "equal scores, class by class": Case(logits=torch.round, threshold=0.1),
    "one score": Case(logits=torch.zeros_like, threshold=0.4, most=100),
    "bfloat16": Case(logits=lambda logits: logits.bfloat16().float(), threshold=0.2, most=70),
    "two images without any": Case(images=(0, 2)),
    "the first and the last without any": Case(images=(1, 2)),
    "no image with any": Case(images=()),
    "boxes beyond the view": Case(deltas=lambda deltas: deltas * 4, threshold=0.8),
    "far in one image": Case(deltas=far_in_one_image, threshold=0.1, most=60, kept=300),
}


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["RetinaNet", "FCOS"])
def subject(
    request: pytest.FixtureRequest, device: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DetectorFamily, DenseDetector, DenseOutputs]:
    """A detector, and what it says of a batch, spread by a random generator."""
    changed: dict[str, Any] = FCOS if request.param == "FCOS" else {}
    content = {**DETECTOR, "MODEL": {**DETECTOR["MODEL"], **changed}}
    cfg = write_config(tmp_path_factory.mktemp("dense") / "detector.yaml", content)
    model = random_detector(cfg, seed=2).eval().to(device)
    family = family_of(cfg)
    with torch.no_grad():
        outputs = family.run(model, random_batch(SIZES))
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(outputs.logits.shape, generator=generator).to(device) * 2
    deltas = torch.randn(outputs.deltas.shape, generator=generator).to(device)
    outputs = replace(outputs, logits=logits, deltas=deltas)
    if isinstance(outputs, FcosOutputs):
        centerness = torch.randn(outputs.centerness.shape, generator=generator).to(device) * 3
        outputs = replace(outputs, centerness=centerness.round(), deltas=deltas + 1)
    return family, model, outputs


def stock_rows(model: DenseDetector, outputs: DenseOutputs, count: int) -> Tensor:
    """Image by image, by detectron2's own functions."""
    counts = outputs.anchors_per_level
    anchors = [Boxes(level) for level in outputs.anchors.split(counts)]
    scores = outputs.logits.sigmoid()
    if isinstance(outputs, FcosOutputs):
        scores = torch.sqrt(scores * outputs.centerness.sigmoid())
    found = torch.tensor([0.0, 0, 0, 0, -1, -1]).repeat(len(scores), count, 1)
    for rows, score, deltas, size in zip(
        found, scores, outputs.deltas, outputs.image_sizes, strict=True
    ):
        one: Instances = model.inference_single_image(
            anchors, list(score.split(counts)), list(deltas.split(counts)), size
        )
        one = detector_postprocess(one, *size)[:count]
        rows[: len(one), :4] = one.pred_boxes.tensor
        rows[: len(one), 4] = one.scores
        rows[: len(one), 5] = one.pred_classes.float()
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_rows_are_those_of_stock_inference_bit_for_bit(
    subject: tuple[DetectorFamily, DenseDetector, DenseOutputs],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family, model, outputs = subject
    case = CASES[name]
    monkeypatch.setattr(model, "test_score_thresh", case.threshold)
    monkeypatch.setattr(model, "test_topk_candidates", case.most)
    monkeypatch.setattr(model, "max_detections_per_image", case.kept)
    logits = case.logits(outputs.logits)
    logits[[number for number in range(len(SIZES)) if number not in case.images]] = -1000
    changed = replace(outputs, logits=logits, deltas=case.deltas(outputs.deltas))
    before = copy.deepcopy(changed)
    for count in (5, case.kept, case.kept + 3):
        ours = family.detections(model, changed, count).cpu()
        theirs = stock_rows(model, changed, count)
        assert ours.shape == (len(SIZES), count, 6)
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()
    found = (ours[..., 4] >= 0).sum(dim=1).tolist()
    assert tuple(number for number, count in enumerate(found) if count) == case.images
    if name == "boxes beyond the view":
        assert min(found) < case.kept
    for value, mine in zip(before.signals().values(), changed.signals().values(), strict=True):
        assert torch.equal(value, mine)


def one_in_three(self: DenseDetector, *arguments: Any) -> Instances:
    """Of the user's: some of the boxes of stock inference, with half the score."""
    found: Instances = super(type(self), self).inference_single_image(*arguments)
    found.scores = found.scores / 2
    return found[1::3]


def test_a_class_with_its_own_inference_of_an_image_is_asked_image_by_image(
    subject: tuple[DetectorFamily, DenseDetector, DenseOutputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, model, outputs = subject
    monkeypatch.setattr(model, "max_detections_per_image", 30)
    stock = family.detections(model, outputs, 30)
    own = type("Own", (type(model),), {"inference_single_image": one_in_three})
    monkeypatch.setattr(model, "__class__", own)
    found = family.detections(model, outputs, 30)
    assert torch.equal(found.cpu(), stock_rows(model, outputs, 30))
    used, of_stock = ((rows[..., 4] >= 0).sum(dim=1) for rows in (found, stock))
    assert (used > 0).all() and (used < of_stock).all()
