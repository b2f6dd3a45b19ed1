"""NMS of a batch against torchvision's of each image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import nms

from stage2_distill.methods.gid.nms import keep_first


def boxes_of(rng: np.random.Generator, images: int, count: int) -> Tensor:
    """Crowded boxes whose corners often coincide, so that overlaps are equal and extreme."""
    corners = rng.integers(0, 12, (images, count, 2)) * 2.5
    sides = rng.integers(1, 8, (images, count, 2)) * 3.7
    return torch.from_numpy(np.concatenate([corners, corners + sides], axis=2)).float()


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 3),
    candidates=st.integers(1, 60),
    count=st.integers(1, 70),
    iou=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_first_kept_are_those_of_torchvision(
    seed: int, images: int, candidates: int, count: int, iou: float, share: float
) -> None:
    rng = np.random.default_rng(seed)
    boxes = boxes_of(rng, images, candidates)
    usable = torch.from_numpy(rng.random((images, candidates)) < share)
    kept, valid = keep_first(boxes, usable, iou, count)
    assert kept.shape == valid.shape == (images, min(count, candidates))
    for n in range(images):
        places = usable[n].nonzero()[:, 0]
        rank = torch.arange(len(places), 0, -1.0)
        wanted = places[nms(boxes[n, places], rank, iou)][:count]
        assert kept[n, valid[n]].tolist() == wanted.tolist()
        # Places without a box come last.
        assert valid[n].tolist() == sorted(valid[n].tolist(), reverse=True)


@pytest.mark.parametrize("limit", [0.3, 0.1, 0.7])
def test_an_overlap_that_rounds_to_the_limit_is_compared_as_torchvision_does(limit: float) -> None:
    """A float32 limit would be a little above 0.3 or below 0.7."""
    side = float(np.float32(limit))
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, side]]])
    kept, valid = keep_first(boxes, torch.ones(1, 2, dtype=torch.bool), limit, 2)
    wanted = nms(boxes[0], torch.tensor([2.0, 1.0]), limit)
    assert kept[valid].tolist() == wanted.tolist()


def test_boxes_that_are_not_usable_may_be_anything() -> None:
    boxes = torch.tensor([[[0.0, 0, 0, 0], [float("nan")] * 4, [0, 0, 9, 9], [1, 1, 9, 9]]])
    usable = torch.tensor([[False, False, True, True]])
    kept, valid = keep_first(boxes, usable, 0.5, 4)
    assert kept[valid].tolist() == [2]
