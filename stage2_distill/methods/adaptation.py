"""The layer that brings the student's features to the teacher's before they are compared.

It is trained with the student, used by the feature and relation losses alone, and left out of the
student's checkpoint. Over a whole pyramid it would cost a twentieth of the student's own step, so
it is computed only where the pooling of the GIs reads it: for the cells of all levels together, as
one matrix product. Which cells these are is known on the host, so that nothing waits for a GPU.

Shape letters: N images, C channels (c of the student, d of the teacher), H and W the grid of a
level, P cells that are read, Q cells that they depend on, k the side of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.nodes import GidConfig

from .layers import convolution

_KERNELS = {"conv3x3": 3, "conv1x1": 1}


class Adaptation(nn.Module):
    """One convolution shared by the levels, which starts as `layers.convolution` does; or nothing.

    With equal channel counts training starts from the losses of `none` and departs from them only
    as far as that lowers the loss.
    """

    def __init__(self, kind: str, *, student_channels: int, teacher_channels: int) -> None:
        """Build it.

        Args:
            kind: `conv3x3`, `conv1x1` or `none` (GID.ADAPTATION).
            student_channels: C of the student's pyramid.
            teacher_channels: C of the teacher's pyramid.

        Raises:
            ValueError: the kind is not known, or it is `none` and the counts differ.
        """
        super().__init__()
        if kind not in GidConfig.ADAPTATIONS:
            raise ValueError(
                f"GID.ADAPTATION must be one of {', '.join(GidConfig.ADAPTATIONS)}, got {kind!r}"
            )
        self.conv: nn.Conv2d | None = None
        if kind == "none":
            if student_channels != teacher_channels:
                raise ValueError(
                    f"GID.ADAPTATION none needs equal channel counts, but the student has "
                    f"{student_channels} and the teacher {teacher_channels}; use conv1x1 or conv3x3"
                )
            return
        self.conv = convolution(student_channels, teacher_channels, _KERNELS[kind])

    def forward(
        self, features: Sequence[Tensor], cells: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Map the student's pyramid to the teacher's channels.

        Args:
            features: L tensors (N, c, H_l, W_l).
            cells: L masks (N, H_l, W_l) bool, on the host, of the cells that will be read
                (`GiPooler.cells`); the rest of the result means nothing. None: all.

        Returns:
            L tensors (N, d, H_l, W_l).
        """
        if self.conv is None:
            return list(features)
        if cells is None:
            return [self.conv(level) for level in features]
        masks = [mask.numpy() for mask in cells]
        whole = _cheaper_whole(masks, features[0].device)
        some = [(level, m) for level, m, w in zip(features, masks, whole, strict=True) if not w]
        found = iter(_at_cells(self.conv, *map(list, zip(*some, strict=True))) if some else [])
        return [
            self.conv(level) if everywhere else next(found)
            for level, everywhere in zip(features, whole, strict=True)
        ]


def _cheaper_whole(masks: Sequence[np.ndarray], device: torch.device) -> list[bool]:
    """Which levels to convolve everywhere: where the cells would cost more.

    All cells are one product, so that on a GPU, where small levels cost their launches, it is all
    levels or none.
    """
    counts, sizes = [int(np.count_nonzero(mask)) for mask in masks], [mask.size for mask in masks]
    if device.type != "cpu":
        return [2 * sum(counts) >= sum(sizes)] * len(masks)
    return [2 * count >= size for count, size in zip(counts, sizes, strict=True)]


def _at_cells(
    conv: nn.Conv2d, levels: Sequence[Tensor], masks: Sequence[np.ndarray]
) -> list[Tensor]:
    """Apply the convolution at some cells of each level (N, c, H_l, W_l)."""
    halos = [_dilated(mask, conv.kernel_size[0] // 2) for mask in masks]
    places = [_places(mask) for mask in (*halos, *masks)]
    taps = _taps(masks, halos, places, conv.kernel_size[0])
    # One copy to the device for all indices.
    indices = torch.from_numpy(np.concatenate([taps, *(place.ravel() for place in places)]))
    device = levels[0].device
    if device.type == "cuda":
        indices = indices.pin_memory()  # 36 bytes a cell, megabytes in a large batch
    parts = indices.to(device, non_blocking=True)
    index, rest = parts[: len(taps)], parts[len(taps) :].long()
    parts_of_levels = rest.split([place.size for place in places])
    around = [place.view(2, -1) for place in parts_of_levels[: len(levels)]]
    inside = [place.view(2, -1) for place in parts_of_levels[len(levels) :]]
    total = any(place.numel() for place in inside)
    rows = [
        _Rows.apply(level, place)
        for level, place in zip(levels, around, strict=True)
        # Without any cell all levels are asked, so that all of them have a gradient.
        if place.numel() or not total
    ]
    sources = torch.cat([*rows, rows[0].new_zeros(1, rows[0].shape[1])])  # (Q + 1, c)
    patches = sources.index_select(0, index).view(-1, conv.weight[0].numel())  # (P, k * k * c)
    values = F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
    results = []
    for level, place, part in zip(
        levels, inside, values.split([place.shape[1] for place in inside]), strict=True
    ):
        shape = (len(level), conv.out_channels, *level.shape[2:])
        if place.numel() or not total:
            result = part.new_zeros(shape)
            result.flatten(2).movedim(1, -1)[place[0], place[1]] = part
        else:
            result = part.new_zeros(()).expand(shape)
        results.append(result)
    return results


def _dilated(mask: np.ndarray, reach: int) -> np.ndarray:
    """Cells (N, H, W) at most `reach` rows and columns away from one of a mask."""
    found = mask.copy()
    for axis in (1, 2):
        source, target = np.moveaxis(found.copy(), axis, 1), np.moveaxis(found, axis, 1)
        for step in range(1, min(reach + 1, mask.shape[axis])):
            target[:, step:] |= source[:, :-step]
            target[:, :-step] |= source[:, step:]
    return found


def _places(mask: np.ndarray) -> np.ndarray:
    """Image and place in its map of every cell of a mask (N, H, W): (2, cells) int32."""
    return np.stack(np.divmod(np.flatnonzero(mask).astype(np.int32), np.int32(mask[0].size)))


def _taps(
    masks: Sequence[np.ndarray],
    halos: Sequence[np.ndarray],
    places: Sequence[np.ndarray],
    side: int,
) -> np.ndarray:
    """Of every cell of the masks, the k * k cells that it depends on: (P * k * k,) int32.

    They are numbered as they lie in the halos, level after level; Q is what lies outside of a map.
    `places` are those of the halos, then those of the masks.
    """
    edge, steps = side // 2, np.arange(side)
    counts = [place.shape[1] for place in places[: len(halos)]]
    found, start = [], 0
    for mask, halo, count, (image, place) in zip(
        masks, halos, counts, places[len(halos) :], strict=True
    ):
        images, height, width = mask.shape
        wide, high = width + 2 * edge, height + 2 * edge
        numbers = np.full((images, high, wide), sum(counts), np.int32)
        inner = numbers[:, edge : edge + height, edge : edge + width]
        inner[halo] = np.arange(start, start + count, dtype=np.int32)
        row, column = np.divmod(place, np.int32(width))
        corner = (image * high + row) * wide + column
        around = (steps[:, None] * wide + steps).ravel()
        found.append(numbers.ravel()[corner[:, None] + around].ravel())
        start += count
    return np.concatenate(found)


class _Rows(torch.autograd.Function):
    """Rows (Q, c) of a map (N, c, H, W) at Q different places.

    Indexing has the same values; but its gradient sorts the places first, to add up what they might
    share.
    """

    @staticmethod
    def forward(ctx: Any, level: Tensor, places: Tensor) -> Tensor:
        """Args: (N, c, H, W); (2, Q) image and place in its map, no two alike."""
        ctx.save_for_backward(places)
        ctx.shape = level.shape
        return level.flatten(2).movedim(1, -1)[places[0], places[1]]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Put each row back to its place."""
        (places,) = ctx.saved_tensors
        result = gradient.new_zeros(ctx.shape)
        result.flatten(2).movedim(1, -1)[places[0], places[1]] = gradient
        return result, None
