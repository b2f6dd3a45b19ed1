"""The teacher's outputs for one training batch, brought onto the batch's grid.

Records of one batch may differ in padded size. A smaller record's maps lie at the top left of the
batch's grid and are extended by edge replication, because zeros would change ROIAlign at the
border; anchors outside a record's own grid are marked and take no part in anything.

Shape letters: N images, n images of one group, K classes, A anchors a position, R anchors an
image, C channels, L levels, S positions of all levels, H_l and W_l the grid of a level. Anchors
are ordered level, H, W, A; positions level, H, W.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    groups: Iterable[TeacherGroup],
    *,
    num_images: int,
    level_sizes: LevelSizes,
    num_anchors: int,
) -> TeacherBatch:
    """Put groups of records onto the grid of the batch.

    A single group of the batch's own size, in the batch's order, is passed on without a copy. Of
    others, one at a time is alive beside the batch, if `groups` makes them as they are asked for.

    Args:
        groups: together they fill the places 0..N-1, each once.
        num_images: N.
        level_sizes: (H_l, W_l) of the batch's L levels, none smaller than a group's.
        num_anchors: A.

    Raises:
        ValueError: places are missing or filled twice, a group does not fit into the batch's
            grid, or shapes contradict each other.
    """
    sizes = [(int(height), int(width)) for height, width in level_sizes]
    filled: list[int] = []
    whole: TeacherBatch | None = None
    for group in groups:
        filled.extend(group.positions)
        _check_places(filled, num_images)
        _check_group(group, sizes, num_anchors, like=whole or group)
        if list(group.positions) == list(range(num_images)) and group.level_sizes == sizes:
            whole = _as_batch(group)
        else:
            whole = whole or _empty_batch(group, num_images, sizes, num_anchors)
            _put(whole, group, sizes, num_anchors)
        del group
    _check_places(filled, num_images, all_of_them=True)
    assert whole is not None
    return whole


def _sizes(features: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(int(level.shape[-2]), int(level.shape[-1])) for level in features]


def _check_places(filled: list[int], num_images: int, *, all_of_them: bool = False) -> None:
    places = set(filled)
    wanted = set(range(num_images))
    if len(places) != len(filled) or not places <= wanted or (all_of_them and places != wanted):
        raise ValueError(
            f"the groups must fill the places 0..{num_images - 1} once each, got {sorted(filled)}"
        )


def _check_group(
    group: TeacherGroup,
    batch_sizes: list[tuple[int, int]],
    num_anchors: int,
    *,
    like: TeacherGroup | TeacherBatch,
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


def _as_batch(group: TeacherGroup) -> TeacherBatch:
    return TeacherBatch(
        features=[level.float() for level in group.features],
        probabilities=group.probabilities.float(),
        deltas=group.deltas.float(),
        valid=group.deltas.new_ones(group.deltas.shape[:2], dtype=torch.bool),
    )


def _empty_batch(
    like: TeacherGroup, num_images: int, level_sizes: list[tuple[int, int]], num_anchors: int
) -> TeacherBatch:
    """Memory for a batch of N images with the channels and classes of a group."""
    boxes = num_anchors * sum(h * w for h, w in level_sizes)
    channels, classes = like.features[0].shape[1], like.probabilities.shape[2]
    empty, zeros = like.deltas.new_empty, like.deltas.new_zeros
    return TeacherBatch(
        features=[empty((num_images, channels, *s), dtype=torch.float32) for s in level_sizes],
        probabilities=zeros((num_images, boxes, classes), dtype=torch.float32),
        deltas=zeros((num_images, boxes, 4), dtype=torch.float32),
        valid=zeros((num_images, boxes), dtype=torch.bool),
    )


def _put(
    whole: TeacherBatch,
    group: TeacherGroup,
    level_sizes: list[tuple[int, int]],
    num_anchors: int,
) -> None:
    """Write a group into its places of the batch."""
    places = torch.tensor(list(group.positions)).to(whole.deltas.device, non_blocking=True)
    for target, level in zip(whole.features, group.features, strict=True):
        target[places] = _extend(level.float(), target.shape[2], target.shape[3])
    everywhere = whole.valid.new_ones((len(places), group.deltas.shape[1], 1))
    for target, part in (
        (whole.probabilities, group.probabilities),
        (whole.deltas, group.deltas),
        (whole.valid[..., None], everywhere),
    ):
        _place(target, places, part, group.level_sizes, level_sizes, num_anchors)


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
