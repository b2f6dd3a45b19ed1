"""MGD: restore the teacher's features from what a random mask leaves of the student's.

Source: Yang et al., Masked Generative Distillation, ECCV 2022, section 3.

The masks come from a hash instead of torch's generators: nothing global is drawn (R-CNN samples
its boxes from there), every device draws alike, and an image's mask depends neither on the other
images of its batch nor on the size of the batch's grid.

Shape letters: N images, C channels, L levels, H_l and W_l the grid of a level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import ClassVar

import torch
from torch import Tensor, nn

from configs.nodes import MgdConfig

from .base import Pair, Step
from .features import AdaptedMethod
from .layers import per_level
from .pyramids import (
    Total,
    check_alike,
    num_images,
    of_this_rank,
    squared_difference,
)

# Position (row, column) has draw number row << 16 | column; no grid is wider.
_COLUMN_BITS = 16
_DRAWN_BITS = 31


class FeatureGenerator(nn.Module):
    """Restores one level of the teacher: 3x3 convolution, ReLU, 3x3 convolution, of one width."""

    def __init__(self, channels: int) -> None:
        """Args: C of the teacher."""
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, masked: Tensor, inside: Tensor) -> Tensor:
        """Restore (N, C, H, W) from features that are 0 outside of (N, 1, H, W) bool.

        Hidden values are 0 there too, so that a record is restored as if it were alone.
        """
        hidden = self.first(masked).relu().masked_fill(~inside, 0.0)
        restored: Tensor = self.second(hidden)
        return restored


def mgd_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    inside: Sequence[Tensor],
    kept: Sequence[Tensor],
    generators: Iterable[nn.Module],
    *,
    total: Total = of_this_rank,
) -> Tensor:
    """Sum over channels and all positions of (G(S masked) - T)^2, over images; levels are summed.

    Positions count whether they were masked or not, and what is left is not rescaled.

    Args:
        student: L tensors (N, C, H_l, W_l), adapted where channels differ.
        teacher: of the same shapes.
        inside: L bool tensors (N, 1, H_l, W_l), the positions of each record's own grid.
        kept: L bool tensors (N, 1, H_l, W_l), False where the student is set to 0 (`mgd_masks`).
        generators: L times a `FeatureGenerator`.
        total: gets N.

    Returns:
        Scalar, unweighted, in squared units of the features.

    Raises:
        ValueError: the shapes contradict each other.
    """
    check_alike(student, teacher, inside)
    sums = [
        squared_difference(generate(mine.masked_fill(~(own & left), 0.0), own), theirs, own)
        for generate, mine, theirs, own, left in zip(
            generators, student, teacher, inside, kept, strict=True
        )
    ]
    return torch.stack(sums).sum() / num_images(student[0], total)


def mgd_masks(
    seed: int,
    image_ids: Sequence[int],
    views: Sequence[int],
    iteration: int,
    sizes: Sequence[tuple[int, int]],
    share: float,
    device: torch.device,
) -> list[Tensor]:
    """Draw which of the student's positions stay, with one copy to the device.

    Args:
        seed: of the run.
        image_ids, views: of the N images.
        iteration: of the training.
        sizes: (H_l, W_l) of the batch's L levels, below 2**16 each.
        share: of the positions to remove, 0..1, each by a draw of its own.
        device: of the student.

    Returns:
        L bool tensors (N, 1, H_l, W_l), False where a position is removed.
    """
    images = list(zip(image_ids, views, strict=True))
    keys = torch.tensor(
        [
            [_key(seed, image, view, iteration, level) for image, view in images]
            for level in range(len(sizes))
        ],
        dtype=torch.int64,
    ).to(device, non_blocking=True)
    return [_kept(of_level, size, share) for of_level, size in zip(keys, sizes, strict=True)]


def _key(*numbers: int) -> int:
    """Integers of any size to one of 64 bits."""
    digest = blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _kept(keys: Tensor, size: tuple[int, int], share: float) -> Tensor:
    """The mask (N, 1, H, W) of one level from the keys (N,) of its images."""
    rows, columns = (torch.arange(side, device=keys.device) for side in size)
    numbers = (rows[:, None] << _COLUMN_BITS) + columns
    drawn = _splitmix64(keys[:, None, None, None], numbers) & ((1 << _DRAWN_BITS) - 1)
    return drawn >= round(share * (1 << _DRAWN_BITS))


def _splitmix64(keys: Tensor, numbers: Tensor) -> Tensor:
    """The draws of some numbers, as in `dataset.views.seeds`, in torch's wrapping int64."""
    z = keys + (numbers + 1) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right with zeros from the left; torch's own repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """The int64 of the same 64 bits."""
    return constant - (1 << 64) if constant >> 63 else constant


class Mgd(AdaptedMethod):
    """Lets generators restore the teacher's pyramid from what is left of the student's."""

    name = "mgd"
    Config = MgdConfig
    weights: ClassVar[dict[str, str]] = {"": "weight"}
    config: MgdConfig

    def __init__(self, config: MgdConfig, pair: Pair) -> None:
        """See `Method`."""
        super().__init__(config, pair)
        channels = pair.teacher_channels
        self.generators = per_level(lambda: FeatureGenerator(channels), len(self.levels))

    def forward(self, step: Step, chosen: None) -> dict[str, Tensor]:
        """See `mgd_loss`; the masks are those of SEED, image, view and iteration."""
        student, teacher, inside = self.pyramids(step)
        images, views = zip(*step.images, strict=True)
        kept = mgd_masks(
            max(self.pair.setup.cfg.SEED, 0),
            images,
            views,
            step.iteration,
            [(int(level.shape[2]), int(level.shape[3])) for level in student],
            self.config.masked,
            student[0].device,
        )
        return {"": mgd_loss(student, teacher, inside, kept, self.generators, total=step.total)}
