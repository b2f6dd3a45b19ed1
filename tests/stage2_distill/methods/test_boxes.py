"""The overlap of decoded boxes: against loops, and what takes no part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from stage2_distill.methods.boxes import boxes_loss, generalized_iou
from tests.stage2_distill.methods.comparing import (
    GARBAGE,
    arrays,
    assert_like_reference,
    mean_over_ranks,
    on,
    part,
)
from tests.stage2_distill.methods.contract import DEVICES, HALVES, Array


def slow_giou(a: Array, b: Array) -> float:
    """GIoU of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = max(sum(areas) - shared, 1e-6)
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    hull = max(hull, 1e-6)
    return shared / union - (hull - union) / hull


def slow_loss(student: Array, teacher: Array, weights: Array, valid: Array) -> float:
    """The loss, one anchor after another."""
    found = total = 0.0
    for place in zip(*np.nonzero(valid), strict=True):
        found += weights[place] * (1.0 - slow_giou(student[place], teacher[place]))
        total += weights[place]
    return found / total if total else 0.0


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Arguments of `boxes_loss` for three images of twelve anchors, in float64."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (2, 3, 12, 2))
    # Both sides near each other, else few of the boxes meet.
    corners[1] = corners[0] + rng.normal(0, 10, (3, 12, 2))
    sides = rng.uniform(1, 30, (2, 3, 12, 2))
    student, teacher = torch.from_numpy(np.concatenate([corners, corners + sides], axis=3))
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[1, 5:] = False
    weights = torch.from_numpy(rng.uniform(0, 1, (3, 12)))
    return {
        "student_boxes": student,
        "teacher_boxes": teacher,
        "weights": weights,
        "valid": valid,
    }


def test_loss_and_gradient_are_those_of_the_loops() -> None:
    given = batch()
    fixed = arrays(given["teacher_boxes"], given["weights"], given["valid"])
    assert_like_reference(
        lambda leaves: boxes_loss(**given | {"student_boxes": leaves[0]}),
        lambda leaves: slow_loss(leaves[0], *fixed),
        [given["student_boxes"]],
    )


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [1, 0, 3, 2], 1 / 3),
        ([0, 0, 1, 1], [2, 0, 3, 1], -1 / 3),
        ([0, 0, 1, 1], [1, 1, 2, 2], -0.5),
        ([5, 5, 5, 5], [5, 5, 5, 5], 0.0),
    ],
)
def test_overlaps_are_those_computed_by_hand(
    first: Sequence[int], second: Sequence[int], wanted: float
) -> None:
    boxes = [torch.tensor(one, dtype=torch.float64) for one in (first, second)]
    assert generalized_iou(*boxes).item() == pytest.approx(wanted)


def test_boxes_without_area_have_a_finite_gradient() -> None:
    boxes = torch.full((1, 2, 4), 7.0, requires_grad=True)
    other = torch.tensor([[[7.0, 7.0, 7.0, 7.0], [8.0, 8.0, 9.0, 9.0]]])
    loss = boxes_loss(boxes, other, torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()


def test_only_the_student_gets_a_gradient() -> None:
    given = batch()
    leaves = [given[name].requires_grad_() for name in list(given)[:3]]
    boxes_loss(**given).backward()
    assert leaves[0].grad is not None
    assert leaves[0].grad[given["valid"]].any(dim=1).all()
    assert leaves[1].grad is None and leaves[2].grad is None


def test_without_confidence_the_loss_is_zero_and_connected() -> None:
    given = batch()
    student = given["student_boxes"].requires_grad_()
    loss = boxes_loss(**given | {"weights": torch.zeros(3, 12)})
    assert loss.item() == 0.0
    assert not torch.autograd.grad(loss, student)[0].any()


def test_what_is_outside_changes_neither_loss_nor_gradient() -> None:
    given = batch()
    there = given["valid"]
    other = {
        name: torch.where(there[..., None] if values.dim() == 3 else there, values, GARBAGE)
        for name, values in given.items()
        if name != "valid"
    }
    results = []
    for one in (given, other | {"valid": there}):
        student = one["student_boxes"].requires_grad_()
        loss = boxes_loss(**one)
        results.append((loss, *torch.autograd.grad(loss, student)))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_batch_and_its_double_have_one_loss() -> None:
    given = batch()
    torch.testing.assert_close(boxes_loss(**part(given, [0, 1, 2] * 2)), boxes_loss(**given))


def test_ranks_with_the_mean_of_their_sums_have_the_mean_of_all_images() -> None:
    given = batch()
    ranks = [part(given, slice(0, 1)), part(given, slice(1, 3))]
    mean = mean_over_ranks([lambda t, r=r: boxes_loss(**r, total=t) for r in ranks])
    torch.testing.assert_close(mean, boxes_loss(**given))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", HALVES)
def test_half_values_are_compared_in_float32(half: str, device: str) -> None:
    given = on(device, batch())
    narrow = {name: x.to(HALVES[half]) for name, x in given.items() if name != "valid"}
    plain = boxes_loss(**given | {name: x.float() for name, x in narrow.items()})
    with torch.autocast(device, dtype=HALVES[half]):
        mixed = boxes_loss(**given | narrow)
    torch.testing.assert_close(mixed, plain, rtol=1e-5, atol=0)


def test_nothing_is_read_back_to_the_host() -> None:
    given = on("meta", batch())
    given["student_boxes"].requires_grad_()
    boxes_loss(**given).backward()
