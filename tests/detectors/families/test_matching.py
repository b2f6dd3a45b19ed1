"""Anchors that detectron2's matcher gives to boxes, for a batch at once."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detectors.families.matching import assigned_anchors
from tests.stage2_distill import reference
from tests.stage2_distill.cases import instances, make_anchors, matcher, tensor

SEEDS = st.integers(0, 2**32 - 1)


def assigned(
    boxes: list[Tensor], anchors: Tensor, usable: Tensor, low_quality: bool = True
) -> Tensor:
    """(N, R) for N times (G, 4) boxes, of which the places behind hold far too large ones."""
    found = instances(boxes)
    return assigned_anchors(matcher(low_quality), found.boxes, found.valid, anchors, usable)


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS, low_quality=st.booleans(), count=st.integers(0, 3), hidden=st.floats(0, 1))
def test_assignment_equals_the_reference(
    seed: int, low_quality: bool, count: int, hidden: float
) -> None:
    rng = np.random.default_rng(seed)
    anchors = make_anchors([(3, 4), (2, 2)], 2)
    corners = rng.random((count, 2)) * 20
    boxes = np.concatenate([corners, corners + 10 + rng.random((count, 2)) * 30], axis=1)
    boxes = boxes.astype(np.float32)
    valid = rng.random(len(anchors)) >= hidden
    wanted = reference.assign(boxes, anchors, valid, 0.4, 0.5, low_quality)
    found = assigned([tensor(boxes)], tensor(anchors), tensor(valid)[None], low_quality)
    np.testing.assert_array_equal(found[0].numpy(), wanted)


def test_an_anchor_outside_the_records_grid_is_never_a_best_match() -> None:
    anchors = torch.tensor([[0.0, 0, 20, 20], [0, 0, 60, 20], [200, 200, 220, 220]])
    box = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    both = torch.tensor([[True, True, True], [False, True, True]])
    found = assigned([box, box], anchors, both)
    assert found.tolist() == [[True, False, False], [False, True, False]]


def test_a_box_that_meets_no_anchor_assigns_none() -> None:
    anchors = torch.tensor([[0.0, 0, 20, 20], [10, 0, 30, 20]])
    far = torch.tensor([500.0, 500.0, 540.0, 540.0])
    near = torch.tensor([0.0, 0.0, 12.0, 12.0])
    valid = torch.ones(2, 2, dtype=torch.bool)
    found = assigned([far[None], torch.stack([far, near])], anchors, valid)
    assert found.tolist() == [[False, False], [True, False]]
