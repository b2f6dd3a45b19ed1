"""Method `fgd`: focal distillation of objects and background, and global distillation of context.

Source: Yang et al., Focal and Global Knowledge Distillation for Detectors, CVPR 2022; the block of
the global part is that of Cao et al., GCNet, ICCV Workshops 2019.

Shape letters: N images, C channels, L levels, H_l and W_l the grid of a level, M places for the
ground-truth boxes of an image. Boxes are XYXY_ABS in pixels of the view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from configs.nodes import FgdConfig

from .base import DETECTIONS, Pair, Step
from .features import AdaptedMethod
from .layers import per_level
from .pyramids import Total, check_alike, num_images, of_this_rank, precise

# Cells of boxes painted at once, 64 MiB: most batches in one part, and no limit on their boxes.
_CHUNK_ELEMENTS = 1 << 24
_TERMS = ("foreground", "background", "attention", "relation")


class ContextBlock(nn.Module):
    """What a global-context block adds to every position of a map.

    The context is an average of the positions, weighted by a softmax over them. The last layer
    starts at zero, so that the block adds nothing at first.
    """

    def __init__(self, channels: int) -> None:
        """Args: channels C of the map; the hidden layer has half as many."""
        super().__init__()
        hidden = channels // 2
        # Layers of vectors are linear: a 1x1 convolution is the same, but in TF32 on a GPU.
        # A bias would cancel in the softmax.
        self.focus = nn.Linear(channels, 1, bias=False)
        self.transform = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels),
        )
        nn.init.kaiming_normal_(self.focus.weight)
        for parameter in self.transform[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, outside: Tensor) -> Tensor:
        """Compute it, in the precision of the layers also under autocast.

        Args:
            features: (N, C, H, W), zero outside.
            outside: (N, 1, H, W) bool, the positions that are no part of the context.

        Returns:
            (N, C, 1, 1).
        """
        with torch.autocast(features.device.type, enabled=False):
            positions = features.flatten(2).to(self.focus.weight.dtype)
            focus = self.focus.weight @ positions  # [N, 1, H * W]
            focus = focus.masked_fill(outside.flatten(2), -torch.inf).softmax(dim=2)
            context = positions @ focus.transpose(1, 2)  # [N, C, 1]
            return self.transform(context.squeeze(2))[..., None, None]


class ContextBlocks(nn.Module):
    """The trained blocks of all levels, one for each side of a level."""

    def __init__(self, levels: int, channels: int) -> None:
        """Args: number of levels, and the teacher's channels C."""
        super().__init__()
        self.student = per_level(lambda: ContextBlock(channels), levels)
        self.teacher = per_level(lambda: ContextBlock(channels), levels)


def fgd_losses(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    boxes: Tensor,
    valid: Tensor,
    inside: Sequence[Tensor],
    *,
    blocks: ContextBlocks,
    strides: Sequence[int],
    temperature: float,
    total: Total = of_this_rank,
) -> dict[str, Tensor]:
    """Compare pyramids inside and outside of objects, what they attend to, and their context.

    Args:
        student: L tensors (N, C, H_l, W_l), after the adaptation where there is one.
        teacher: L tensors (N, C, H_l, W_l); constants.
        boxes: (N, M, 4) ground truth.
        valid: (N, M) bool, whether there is a box.
        inside: L bool tensors (N, 1, H_l, W_l), the positions of each record's own grid; others
            take no part.
        blocks: trained on both sides.
        strides: pixels between the positions of the L levels.
        temperature: of the attention, above 0.
        total: see `Total`; gets the number of images, a scalar.

    Returns:
        Four scalars, each summed over the levels and divided by N alone: `foreground` and
        `background`, the sums of the cells' weights (see `cell_weights`) times both attentions of
        the teacher times (S - T)^2; `attention`, the sum of absolute differences of both
        attentions, whose gradient passes to the student; `relation`, the sum of squared
        differences of the maps after their context blocks.

    Raises:
        ValueError: the shapes contradict each other.
    """
    check_alike(student, teacher, inside)
    sums = []
    sides = zip(student, teacher, blocks.student, blocks.teacher, strict=True)
    for (s, t, *of_level), there, stride in zip(sides, inside, strides, strict=True):
        outside = ~there  # once: on a GPU, launches are what small levels cost
        mine = precise(s).masked_fill(outside, 0.0)
        theirs = precise(t.detach()).masked_fill(outside, 0.0)
        weights = cell_weights(boxes, valid, outside, stride)
        focal = _focal_sums(mine, theirs, outside, weights, temperature)
        sums.append(torch.stack([*focal, _relation_sum(mine, theirs, outside, of_level)]))
    means = torch.stack(sums).sum(dim=0) / num_images(boxes, total)
    return dict(zip(_TERMS, means.unbind(), strict=True))


def attention(
    features: Tensor, outside: Tensor, count: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Where, and in which channels, the magnitudes of a map are large; each has the mean 1.

    Args:
        features: (N, C, H, W), zero outside.
        outside: (N, 1, H, W) bool, the positions that do not count.
        count: (N, 1, 1, 1), the number of those that do.
        temperature: that the magnitudes are divided by before the softmax.

    Returns:
        Spatial attention (N, 1, H, W), zero outside; channel attention (N, C, 1, 1).
    """
    magnitude = features.abs() / temperature
    of_positions = magnitude.mean(dim=1, keepdim=True).masked_fill(outside, -torch.inf)
    of_channels = magnitude.sum(dim=(2, 3), keepdim=True) / count
    spatial = count * of_positions.flatten(1).softmax(dim=1).view_as(of_positions)
    return spatial, features.shape[1] * of_channels.softmax(dim=1)


@torch.no_grad()
def cell_weights(
    boxes: Tensor, valid: Tensor, outside: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    """Weights of the cells of one level, so that small objects count as much as large ones.

    Args:
        boxes: (N, M, 4). valid: (N, M) bool.
        outside: (N, 1, H, W) bool, the positions beyond each record's own grid.
        stride: pixels between positions.

    Returns:
        Two tensors (N, 1, H, W), zero outside. Foreground: a box covers the cells floor(x1) to
        ceil(x2) in units of the stride, both included, at 1 / (their number, before the border
        cuts them); where boxes overlap, the larger weight. Background: the cells without a box, at
        1 / (their number in the image).
    """
    height, width = outside.shape[2:]
    foreground = _painted(boxes, valid, height, width, stride).masked_fill(outside, 0.0)
    background = (foreground + outside == 0).to(foreground.dtype)
    return foreground, background / background.sum(dim=(2, 3), keepdim=True).clamp(min=1.0)


def _painted(boxes: Tensor, valid: Tensor, height: int, width: int, stride: int) -> Tensor:
    """The largest weight of a box at each cell, (N, 1, H, W); a bounded number at a time."""
    scaled = precise(boxes) / stride
    first, last = scaled[..., :2].floor(), scaled[..., 2:].ceil()
    weight = torch.where(valid, 1.0 / (last - first + 1.0).prod(dim=2), 0.0)
    columns = _covered(first[..., 0], last[..., 0], width)
    rows = _covered(first[..., 1], last[..., 1], height) * weight[..., None]
    largest = rows.new_zeros(len(boxes), height, width)
    step = max(1, _CHUNK_ELEMENTS // max(1, largest.numel()))
    for start in range(0, boxes.shape[1], step):
        part = slice(start, start + step)
        painted = rows[:, part, :, None] * columns[:, part, None]  # [N, step, H, W]
        largest = torch.maximum(largest, painted.amax(dim=1))
    return largest[:, None]


def _covered(first: Tensor, last: Tensor, size: int) -> Tensor:
    """Cells (N, M, size) bool from the first to the last (N, M), both included."""
    cells = torch.arange(size, device=first.device)
    return (cells >= first[..., None]) & (cells <= last[..., None])


def _focal_sums(
    student: Tensor,
    teacher: Tensor,
    outside: Tensor,
    weights: tuple[Tensor, Tensor],
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of foreground, background and attention on one level."""
    count = outside.shape[1:].numel() - outside.sum(dim=(2, 3), keepdim=True)
    spatial, channel = attention(student, outside, count, temperature)
    with torch.no_grad():
        wanted_spatial, wanted_channel = attention(teacher, outside, count, temperature)
    error = ((student - teacher).square() * wanted_channel).sum(dim=1, keepdim=True)
    foreground, background = ((weight * wanted_spatial * error).sum() for weight in weights)
    apart = (spatial - wanted_spatial).abs().sum() + (channel - wanted_channel).abs().sum()
    return foreground, background, apart


def _relation_sum(
    student: Tensor, teacher: Tensor, outside: Tensor, blocks: Sequence[nn.Module]
) -> Tensor:
    """The sum of squared differences of a level's maps after the blocks of both sides."""
    added = blocks[0](student, outside) - blocks[1](teacher, outside)
    return (student - teacher + added).masked_fill(outside, 0.0).square().sum()


class Fgd(AdaptedMethod):
    """Compares objects, background, what is attended to, and the context of each level."""

    name = "fgd"
    Config = FgdConfig
    weights: ClassVar[dict[str, str]] = {term: f"{term}_weight" for term in _TERMS}
    too_coarse: ClassVar[dict[str, str]] = {
        "compact": "its attention singles out positions, whose errors moved its terms by up to 5%"
    }
    needs_unlabelled: ClassVar[tuple[str, ...]] = (DETECTIONS,)
    config: FgdConfig

    def __init__(self, config: FgdConfig, pair: Pair) -> None:
        """See `Method`."""
        super().__init__(config, pair)
        self.blocks = ContextBlocks(len(self.levels), pair.teacher_channels)
        strides = list(pair.levels.values())
        self._strides = [strides[level] for level in self.levels]

    def forward(self, step: Step, chosen: None) -> dict[str, Tensor]:
        """See `fgd_losses`."""
        student, teacher, inside = self.pyramids(step)
        return fgd_losses(
            student,
            teacher,
            *step.objects_or_detections,
            inside,
            blocks=self.blocks,
            strides=self._strides,
            temperature=self.config.temperature,
            total=step.total,
        )
