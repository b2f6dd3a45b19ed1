"""Ground truth of a batch as tensors with masks."""

import torch
from detectron2.structures import Boxes, Instances

from stage2_distill.methods.ground_truth import batched_boxes


def target(*boxes: list[float]) -> Instances:
    """Ground truth of an image."""
    return Instances((50, 60), gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))


def test_boxes_are_batched_with_those_that_are_there() -> None:
    first, second = [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]
    boxes, valid = batched_boxes([target(first), target(), target(second, first)])
    nothing = [0.0] * 4
    assert boxes.tolist() == [[first, nothing], [nothing, nothing], [second, first]]
    assert valid.tolist() == [[True, False], [False, False], [True, True]]


def test_images_without_objects_have_no_places() -> None:
    boxes, valid = batched_boxes([target(), target()])
    assert boxes.shape == (2, 0, 4) and valid.shape == (2, 0)
