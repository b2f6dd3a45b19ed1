"""Anchors are kept by grid and device, and are those that detectron2 makes."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes

from detectors.families import anchors
from detectors.families.anchors import anchors_of


def generator(kind: type = DefaultAnchorGenerator) -> DefaultAnchorGenerator:
    made = kind(sizes=[[16], [32]], aspect_ratios=[[0.5, 1.0]], strides=[8, 16])
    assert isinstance(made, DefaultAnchorGenerator)
    return made


def maps(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.zeros(2, 3, *size) for size in sizes]


def test_they_are_detectron2_s_own_and_made_once_for_a_grid() -> None:
    made = generator()
    for features in (maps((4, 6), (2, 3)), maps((2, 2), (1, 1))):
        found = anchors_of(made, features)
        assert torch.equal(found, Boxes.cat(made(features)).tensor)
        assert anchors_of(made, features) is found
    assert anchors_of(generator(), maps((2, 2), (1, 1))) is not found


def test_the_grids_seen_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors, "_MOST", 2)
    made, grids = generator(), [maps((side, 2), (1, 1)) for side in (2, 3, 4)]
    first, second, _ = (anchors_of(made, one) for one in grids)
    assert anchors_of(made, grids[1]) is second
    assert anchors_of(made, grids[0]) is not first


def test_what_inference_made_is_not_used_for_training() -> None:
    made, features = generator(), maps((2, 2), (1, 1))
    with torch.inference_mode():
        assert anchors_of(made, features).is_inference()
    assert not anchors_of(made, features).is_inference()


def test_a_generator_of_the_user_s_is_asked_each_time() -> None:
    class Own(DefaultAnchorGenerator):
        pass

    made, features = generator(Own), maps((2, 2), (1, 1))
    assert anchors_of(made, features) is not anchors_of(made, features)
