"""Detections that become ground truth: against loops, limits, and images without any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from stage2_distill.methods.pseudo import _is_pseudo_object, with_pseudo_objects
from tests.stage2_distill import reference

LIMITS = {"min_score": 0.5, "max_iou": 0.5}
UNUSED = [0.0, 0.0, 0.0, 0.0, -1.0, 0.0]


def image(boxes: Any = (), classes: Any = ()) -> Instances:
    """Ground truth of a view of 50 x 60 pixels."""
    return Instances(
        (50, 60),
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


def test_no_images_have_no_objects() -> None:
    assert with_pseudo_objects([], torch.zeros(0, 5, 6), **LIMITS) == []


def rows_of(target: Instances) -> list[list[float]]:
    """Boxes with classes."""
    return torch.cat([target.gt_boxes.tensor, target.gt_classes[:, None]], dim=1).tolist()


def added(target: Instances, *detections: list[float], **limits: float) -> list[list[float]]:
    """The boxes with classes that an image's detections add."""
    (found,) = with_pseudo_objects([target], torch.tensor([detections]), **(LIMITS | limits))
    boxes, classes = found.gt_boxes.tensor, found.gt_classes
    assert torch.equal(boxes[: len(target)], target.gt_boxes.tensor)
    assert torch.equal(classes[: len(target)], target.gt_classes)
    assert classes.dtype == torch.int64 and found.image_size == target.image_size
    return rows_of(found)[len(target) :]


def random_batch(seed: int) -> tuple[list[Instances], Tensor]:
    """Three images with none to six objects, and detections near them and elsewhere."""
    rng = np.random.default_rng(seed)
    targets, detections = [], []
    for count in (6, 0, 2):
        corners = rng.uniform(0, 30, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(4, 20, (count, 2))], axis=1)
        targets.append(image(boxes, rng.integers(0, 5, count)))
        far = rng.uniform(0, 30, (4, 2))
        far = np.concatenate([far, far + rng.uniform(2, 20, (4, 2))], axis=1)
        near = boxes[:4] + rng.uniform(0, 3, (min(4, count), 4))
        found = np.concatenate([near, far])[:7]
        scores = np.sort(rng.uniform(0.2, 1, len(found)))[::-1]
        rows = np.column_stack([found, scores, rng.integers(0, 5, len(found))])
        detections.append(np.concatenate([rows, [UNUSED] * (9 - len(rows))]))
    return targets, torch.from_numpy(np.stack(detections)).float()


@pytest.mark.parametrize("seed", range(20))
def test_added_objects_are_those_of_the_loops(seed: int) -> None:
    targets, detections = random_batch(seed)
    result = with_pseudo_objects(targets, detections, **LIMITS)
    for target, found, rows in zip(targets, result, detections.tolist(), strict=True):
        wanted = rows_of(target)
        objects = target.gt_boxes.tensor.tolist()
        for *box, score, label in rows:
            is_apart = all(reference.iou(tuple(box), tuple(other)) < 0.5 for other in objects)
            if score >= 0.5 and is_apart:
                wanted.append([*box, label])
        assert rows_of(found) == wanted


def test_limits_are_where_they_are_said_to_be() -> None:
    one = image([[0, 0, 10, 10]], [3])
    # IoU 0.5 exactly, and a little less; the class makes no difference.
    half, less = [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 4.9]
    assert added(one, [*half, 0.9, 3]) == added(one, [*half, 0.9, 1]) == []
    assert added(one, [*less, 0.5, 1]) == [pytest.approx([*less, 1])]
    assert added(one, [*less, 0.49, 1]) == []
    assert added(one, [*less, 0.49, 1], min_score=0.4) == [pytest.approx([*less, 1])]
    assert added(one, [*half, 0.9, 1], max_iou=0.6) == [pytest.approx([*half, 1])]


def test_every_box_of_ground_truth_is_compared() -> None:
    two = image([[0, 0, 10, 10], [30, 30, 40, 40]], [0, 0])
    assert added(two, [30.0, 30.0, 40.0, 41.0, 0.9, 1], [0.0, 0.0, 10.0, 11.0, 0.8, 1]) == []


def test_an_image_without_objects_gets_all_that_the_teacher_is_sure_of() -> None:
    sure, unsure = [1.0, 2.0, 8.0, 9.0, 0.9, 4], [1.0, 2.0, 8.0, 9.0, 0.1, 4]
    assert added(image(), sure, unsure, UNUSED) == [[1.0, 2.0, 8.0, 9.0, 4.0]]
    assert added(image(), UNUSED, UNUSED) == []


def test_unused_rows_are_no_objects_whatever_the_limit() -> None:
    assert added(image(), [1.0, 1.0, 9.0, 9.0, -1.0, 0], min_score=0.0) == []


def test_a_box_without_sides_is_never_ground_truth() -> None:
    """Its deltas are infinite, and so would be the loss."""
    assert added(image(), [4.0, 4.0, 4.0, 20.0, 0.9, 0], [4.0, 4.0, 20.0, 4.0, 0.8, 0]) == []


def test_the_ground_truth_given_is_not_modified() -> None:
    targets, detections = random_batch(0)
    before = [len(target) for target in targets]
    with_pseudo_objects(targets, detections, **LIMITS)
    assert [len(target) for target in targets] == before


def test_what_is_compared_is_not_read_back_image_by_image() -> None:
    detections, boxes = torch.rand(2, 5, 6, device="meta"), torch.rand(2, 3, 4, device="meta")
    assert _is_pseudo_object(detections, boxes, 0.5, 0.5).is_meta
