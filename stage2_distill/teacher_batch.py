"""The teacher's outputs for one training batch, brought onto the batch's grid.

Records of one batch may differ in padded size. A smaller record's maps lie at the top left of the
batch's grid and are extended by edge replication, because zeros would change ROIAlign at the
border; anchors outside a record's own grid are marked and take no part in anything.

Shape letters: N images, n images of one group, K classes, A anchors a position, R anchors an
image, C channels, L levels, S positions of all levels, H_l and W_l the grid of a level. Anchors
are ordered level, H, W, A; positions level, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LevelSizes = Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class TeacherBatch:
    """Decoded teacher outputs of N images on one grid; constants, never with a gradient.

    Attributes:
        features: L tensors (N, C, H_l, W_l) float32.
        probabilities: (N, R, K) float32, 0..1; zero where not valid.
        deltas: (N, R, 4) float32, in the units of the detector's box transform; zero where not
            valid.
        valid: (N, R) bool, whether the anchor lies on its record's own grid.
    """

    features: list[Tensor]
    probabilities: Tensor
    deltas: Tensor
    valid: Tensor


@dataclass(frozen=True, kw_only=True)
class TeacherGroup:
    """Decoded records of one padded size, and where in the batch they belong.

    Attributes:
        positions: n distinct places in the batch, 0..N-1.
        features: L tensors (n, C, H_l, W_l) float.
        probabilities: (n, R, K) float, 0..1.
        deltas: (n, R, 4) float.
    """

    positions: Sequence[int]
    features: Sequence[Tensor]
    probabilities: Tensor
    deltas: Tensor

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """(H_l, W_l) of the group's L levels."""
        return _sizes(self.features)


def split_levels(features: Tensor, level_sizes: LevelSizes) -> list[Tensor]:
    """View a flattened pyramid as one map a level.

    Args:
        features: (n, C, S).
        level_sizes: (H_l, W_l) of L levels, S = sum of H_l * W_l.

    Returns:
        L views (n, C, H_l, W_l) of the same memory.

    Raises:
        ValueError: S is not the sum over the levels.
    """
    areas = [height * width for height, width in level_sizes]
    if features.dim() != 3 or features.shape[2] != sum(areas):
        raise ValueError(
            f"features must be (n, C, {sum(areas)}) for the levels {list(level_sizes)}, "
            f"got {tuple(features.shape)}"
        )
    maps = features.split(areas, dim=2)
    return [m.unflatten(2, tuple(size)) for m, size in zip(maps, level_sizes, strict=True)]


def assemble(
    groups: Sequence[TeacherGroup], level_sizes: LevelSizes, num_anchors: int
) -> TeacherBatch:
    """Put groups of records onto the grid of the batch.

    A single group of the batch's own size, in the batch's order, is passed on without a copy.

    Args:
        groups: together they fill the places 0..N-1, each once.
        level_sizes: (H_l, W_l) of the batch's L levels, none smaller than a group's.
        num_anchors: A.

    Raises:
        ValueError: places are missing or filled twice, a group does not fit into the batch's
            grid, or shapes contradict each other.
    """
    sizes = [(int(height), int(width)) for height, width in level_sizes]
    num_images = _check_places(groups)
    for group in groups:
        _check_group(group, sizes, num_anchors, like=groups[0])
    first = groups[0]
    if list(first.positions) == list(range(num_images)) and first.level_sizes == sizes:
        return TeacherBatch(
            features=[level.float() for level in first.features],
            probabilities=first.probabilities.float(),
            deltas=first.deltas.float(),
            valid=first.deltas.new_ones(first.deltas.shape[:2], dtype=torch.bool),
        )
    return _merge(groups, num_images, sizes, num_anchors)


def _sizes(features: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(int(level.shape[-2]), int(level.shape[-1])) for level in features]


def _check_places(groups: Sequence[TeacherGroup]) -> int:
    places = sorted(place for group in groups for place in group.positions)
    if not places or places != list(range(len(places))):
        raise ValueError(f"the groups must fill the places 0..N-1 once each, got {places}")
    return len(places)


def _check_group(
    group: TeacherGroup,
    batch_sizes: list[tuple[int, int]],
    num_anchors: int,
    *,
    like: TeacherGroup,
) -> None:
    sizes = group.level_sizes
    if len(sizes) != len(batch_sizes) or any(
        own[0] > whole[0] or own[1] > whole[1]
        for own, whole in zip(sizes, batch_sizes, strict=True)
    ):
        raise ValueError(f"levels {sizes} do not fit into the batch's levels {batch_sizes}")
    count, channels = len(group.positions), like.features[0].shape[1]
    boxes, classes = num_anchors * sum(h * w for h, w in sizes), like.probabilities.shape[2]
    expected = {
        "probabilities": (group.probabilities, (count, boxes, classes)),
        "deltas": (group.deltas, (count, boxes, 4)),
    } | {
        f"features of level {i}": (level, (count, channels, *sizes[i]))
        for i, level in enumerate(group.features)
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must be {shape} for {count} records of levels {sizes} with {num_anchors} "
                f"anchors a position, got {tuple(tensor.shape)}"
            )


def _merge(
    groups: Sequence[TeacherGroup],
    num_images: int,
    level_sizes: list[tuple[int, int]],
    num_anchors: int,
) -> TeacherBatch:
    first = groups[0]
    like = first.deltas
    boxes = num_anchors * sum(h * w for h, w in level_sizes)
    maps = [
        like.new_empty((num_images, first.features[0].shape[1], h, w), dtype=torch.float32)
        for h, w in level_sizes
    ]
    classes = first.probabilities.shape[2]
    probabilities = like.new_zeros((num_images, boxes, classes), dtype=torch.float32)
    deltas = like.new_zeros((num_images, boxes, 4), dtype=torch.float32)
    valid = like.new_zeros((num_images, boxes, 1), dtype=torch.bool)
    for group in groups:
        places = torch.as_tensor(list(group.positions), device=like.device)
        for target, level in zip(maps, group.features, strict=True):
            target[places] = _extend(level.float(), target.shape[2], target.shape[3])
        everywhere = valid.new_ones((len(places), group.deltas.shape[1], 1))
        for whole, part in (
            (probabilities, group.probabilities),
            (deltas, group.deltas),
            (valid, everywhere),
        ):
            _place(whole, places, part, group.level_sizes, level_sizes, num_anchors)
    return TeacherBatch(
        features=maps, probabilities=probabilities, deltas=deltas, valid=valid.squeeze(2)
    )


def _extend(level: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last row and column of (n, C, h, w) until it is (n, C, height, width)."""
    missing = (0, width - level.shape[3], 0, height - level.shape[2])
    return F.pad(level, missing, mode="replicate") if any(missing) else level


def _place(
    whole: Tensor,
    places: Tensor,
    part: Tensor,
    part_sizes: LevelSizes,
    whole_sizes: LevelSizes,
    num_anchors: int,
) -> None:
    """Write per-anchor values of a small grid into the top left of each level of a large one."""
    whole_start = part_start = 0
    for (whole_h, whole_w), (h, w) in zip(whole_sizes, part_sizes, strict=True):
        whole_end = whole_start + whole_h * whole_w * num_anchors
        part_end = part_start + h * w * num_anchors
        grid = whole[:, whole_start:whole_end].unflatten(1, (whole_h, whole_w, num_anchors))
        values = part[:, part_start:part_end].unflatten(1, (h, w, num_anchors))
        grid[places, :h, :w] = values.to(grid.dtype)
        whole_start, part_start = whole_end, part_end
