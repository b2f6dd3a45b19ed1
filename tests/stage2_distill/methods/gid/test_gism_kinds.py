"""Kinds of general instances by their overlap with ground truth, and the modes that filter them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from configs.nodes import GidConfig
from stage2_distill.methods.gid import gism
from stage2_distill.methods.gid.gism import count_kinds, filter_by_mode, kinds_of
from tests.stage2_distill import reference
from tests.stage2_distill.cases import STYLES, expected, instances, make_case, tensor

SEEDS = st.integers(0, 2**32 - 1)
# Three images without a positive anchor.
NOWHERE = torch.zeros(3, 5, dtype=torch.bool)


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS, style=st.sampled_from(STYLES), objects=st.integers(0, 4))
def test_kinds_equal_the_reference(seed: int, style: str, objects: int) -> None:
    case = make_case(seed, style, num_classes=2)
    config = GidConfig(nms_iou=0.7)
    wanted = expected(case, 0, config)
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 25, (objects, 2))
    gt = np.concatenate([corners, corners + rng.uniform(5, 40, (objects, 2))], axis=1)
    gt = gt.astype(np.float32)
    positive = rng.random(len(case.anchors)) < 1 / 3
    names = reference.kinds(wanted, positive, gt.astype(float))
    assume(not wanted.ambiguous)
    found = case.select(config)
    kinds = kinds_of(found, tensor(positive)[None], [tensor(gt)])
    assert [gism.KINDS[k] for k in kinds[found.valid]] == names
    assert count_kinds(kinds, found.valid) == {name: names.count(name) for name in gism.KINDS}
    for mode in ("pos", "semi_pos", "neg"):
        kept = filter_by_mode(found, kinds, mode).of_image(0).anchor_index.tolist()
        assert kept == [r for r, n in zip(wanted.anchors, names, strict=True) if n == mode]
    assert int(filter_by_mode(found, kinds, "all").valid.sum()) == len(names)


def test_the_limits_between_the_kinds_belong_to_other() -> None:
    """0.7 and 0.3 exactly; the share is of the GI's area, not of the object's."""
    gt = torch.tensor([[0.0, 0.0, 1000.0, 70.0], [0.0, 970.0, 1000.0, 1000.0]])
    boxes = [
        [0.0, 0.0, 100.0, 100.0],  # 0.7 of it
        [0.0, 0.0, 100.0, 99.0],  # a little more
        [0.0, 900.0, 100.0, 1000.0],  # 0.3 of it
        [0.0, 899.0, 100.0, 1000.0],  # a little less
    ]
    kinds = kinds_of(instances([torch.tensor(boxes)]), NOWHERE[:1], [gt])
    assert [gism.KINDS[k] for k in kinds[0]] == ["other", "semi_pos", "other", "neg"]


def test_images_without_objects_or_instances_have_kinds_too() -> None:
    found = instances([torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 20.0, 20.0]])])
    kinds = kinds_of(found, NOWHERE[:2], [torch.zeros(0, 4)] * 2)
    assert kinds[found.valid].tolist() == [gism.KINDS.index("neg")]
    assert count_kinds(kinds, found.valid) == {"pos": 0, "semi_pos": 0, "neg": 1, "other": 0}
    assert not filter_by_mode(found, kinds, "pos").valid.any()


def test_an_object_counts_for_its_own_image_alone() -> None:
    box = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    found = instances([box, box, box])
    objects = [torch.zeros(0, 4), torch.cat([box + 15, box]), box + 100]
    kinds = kinds_of(found, NOWHERE, objects)[:, 0]
    assert [gism.KINDS[k] for k in kinds] == ["neg", "semi_pos", "neg"]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"GID\.MODE must be one of .*, got 'best'"):
        filter_by_mode(instances([torch.zeros(0, 4)]), torch.zeros(1, 0), "best")
