"""ROIAlign of pyramids at GI boxes, and the cells that it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from configs.nodes import GidConfig
from stage2_distill.methods.gid.pooling import GiPooler
from tests.stage2_distill import reference
from tests.stage2_distill.cases import grid_sizes, make_case, places_in, tensor

SEEDS = st.integers(0, 2**32 - 1)
# Coarse, so that boxes of every level fit on maps of a few cells.
STRIDES = (32, 64, 128)


def random_pyramid(rng: np.random.Generator, images: int, channels: int = 2) -> list[Tensor]:
    """Three levels of an image of up to 1888 px."""
    sizes = grid_sizes(int(rng.integers(3, 60)), int(rng.integers(3, 60)), levels=3)
    return [torch.from_numpy(rng.standard_normal((images, channels, h, w))) for h, w in sizes]


def random_boxes(rng: np.random.Generator, level: Tensor, count: int) -> Tensor:
    """(count, 4) boxes inside the image, of 10 px up to all of it."""
    height, width = level.shape[2] * STRIDES[0], level.shape[3] * STRIDES[0]
    limits = np.array([width, height])
    sides = 10 + rng.random((count, 2)) * (limits - 10)
    corners = rng.random((count, 2)) * (limits - sides)
    return torch.from_numpy(np.concatenate([corners, corners + sides], axis=1)).float()


@settings(max_examples=25, deadline=None)
@given(
    seed=SEEDS,
    images=st.integers(1, 3),
    size=st.integers(1, 4),
    ratio=st.integers(1, 2),
)
def test_pooled_features_equal_the_reference(seed: int, images: int, size: int, ratio: int) -> None:
    rng = np.random.default_rng(seed)
    pyramid = random_pyramid(rng, images)
    boxes = [random_boxes(rng, pyramid[0], int(rng.integers(0, 4))) for _ in range(images)]
    pooler = GiPooler(STRIDES, GidConfig(roi_size=size, sampling_ratio=ratio))
    pooled = pooler([level.float() for level in pyramid], places_in(pooler, boxes))
    assert pooled.shape == (sum(map(len, boxes)), 2, size, size)
    row = 0
    for image, of_image in enumerate(boxes):
        maps = [level[image].numpy() for level in pyramid]
        for box in of_image.double().tolist():
            wanted, ambiguous = reference.pool(maps, list(STRIDES), tuple(box), size, ratio)
            assume(not ambiguous)
            np.testing.assert_allclose(pooled[row].numpy(), wanted, atol=1e-4)
            row += 1


def test_the_random_boxes_reach_every_level() -> None:
    """Else the comparison above would be of one level."""
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, torch.zeros(1, 1, 59, 59), 60).double().tolist()
    levels = [reference.level_of(tuple(box), 5, 7)[0] for box in boxes]
    assert min(levels.count(level) for level in (5, 6)) > 10
    assert reference.level_of((0.0, 0.0, 1800.0, 1888.0), 5, 7)[0] == 7


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, images=st.integers(1, 3))
def test_cells_are_all_that_is_read(seed: int, images: int) -> None:
    """Values outside the mask change nothing, and most of those inside count."""
    rng = np.random.default_rng(seed)
    pyramid = [level.float() for level in random_pyramid(rng, images)]
    boxes = [random_boxes(rng, pyramid[0], int(rng.integers(0, 4))) for _ in range(images)]
    pooler = GiPooler(STRIDES, GidConfig(roi_size=7))
    rois = places_in(pooler, boxes)
    cells = pooler.cells(pyramid, rois)
    blanked = [
        level.masked_fill(~mask[:, None], 1e6) for level, mask in zip(pyramid, cells, strict=True)
    ]
    torch.testing.assert_close(pooler(blanked, rois), pooler(pyramid, rois), atol=1e-4, rtol=0)
    leaves = [torch.ones_like(level).requires_grad_() for level in pyramid]
    pooler(leaves, rois).sum().backward()
    for leaf, mask in zip(leaves, cells, strict=True):
        if leaf.grad is None:
            assert not mask.any()
            continue
        read = leaf.grad.bool().any(dim=1)
        assert not (read & ~mask).any()
        # With seven cells a side even the largest boxes leave gaps of no more than one cell.
        assert read.sum() * 8 >= mask.sum()


def test_mixed_sizes_pool_as_on_each_images_own_grid() -> None:
    """Edge replication continues the map exactly as ROIAlign's own border does."""
    rng = np.random.default_rng(7)
    pooler = GiPooler((8, 16), GidConfig())
    for seed in range(20):
        case = make_case(seed, "random", images=2)
        batch = case.teacher()
        boxes = []
        for image in case.images:
            height, width = image.image_size
            corners = rng.random((3, 2)) * (width / 2, height / 2)
            far = np.tile([width, height], (3, 1))
            boxes.append(torch.from_numpy(np.concatenate([corners, far], axis=1)).float())
        together = pooler(batch.features, places_in(pooler, boxes)).split(3)
        for image, of_image, pooled in zip(case.images, boxes, together, strict=True):
            alone = pooler(
                [tensor(level)[None] for level in image.features], places_in(pooler, [of_image])
            )
            torch.testing.assert_close(pooled, alone, atol=1e-5, rtol=0)


def test_pooled_features_are_those_of_detectron2_bit_for_bit() -> None:
    """Values and gradients, boxes of all levels in any order, and images without one."""
    rng = np.random.default_rng(3)
    pyramid = [torch.randn(3, 2, s, s) for s in (59, 30, 15)]
    boxes = [random_boxes(rng, pyramid[0], count) for count in (6, 0, 9)]
    stock = ROIPooler((4, 4), [1 / s for s in STRIDES], 2, "ROIAlignV2")
    pooler = GiPooler(STRIDES, GidConfig(roi_size=4))
    upstream = torch.randn(15, 2, 4, 4)
    results = []
    for pool in (
        lambda levels: stock(levels, [Boxes(b) for b in boxes]),
        lambda levels: pooler(levels, places_in(pooler, boxes)),
    ):
        leaves = [level.clone().requires_grad_() for level in pyramid]
        pooled = pool(leaves)
        found = torch.autograd.grad(pooled, leaves, upstream, materialize_grads=True)
        results.append([pooled, *found])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_no_boxes_give_an_empty_result_with_a_gradient() -> None:
    leaves = [torch.randn(2, 3, s, s, requires_grad=True) for s in (4, 2)]
    pooler = GiPooler((8, 16), GidConfig())
    pooled = pooler(leaves, places_in(pooler, [torch.zeros(0, 4)] * 2))
    assert pooled.shape == (0, 3, 10, 10)
    pooled.sum().backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_pooling_is_float32_under_autocast() -> None:
    features = [torch.randn(1, 3, 4, 4)]
    pooler = GiPooler((8,), GidConfig())
    rois = places_in(pooler, [torch.tensor([[3.0, 4.0, 30.0, 20.0]])])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pooler([features[0].bfloat16()], rois)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, pooler([features[0].bfloat16().float()], rois))


@pytest.mark.parametrize("strides", [[], [8, 32], [8, 8], [12, 24], [16, 8], [0]])
def test_strides_that_are_no_pyramid_are_refused(strides: list[int]) -> None:
    with pytest.raises(ValueError, match="consecutive powers of two"):
        GiPooler(strides, GidConfig())
