"""What losses that compare two pyramids share: their precision, their sums and their counts.

A record's maps lie at the top left of the batch's grid; what is outside of its own grid takes part
in nothing. It is filled, never multiplied by zero, so that no value there can reach a loss.

Shape letters: N images, C channels, L levels, H_l and W_l the grid of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# What to divide by, from a sum or count (any shape) of this rank: the mean over the ranks makes the
# mean of their losses that of all images. Every rank calls it equally often.
Total = Callable[[Tensor], Tensor]


def of_this_rank(value: Tensor) -> Tensor:
    """The `Total` of a rank that counts its own images alone."""
    return value


def precise(values: Tensor) -> Tensor:
    """At least float32, also under autocast."""
    return values if values.dtype == torch.float64 else values.float()


def check_alike(
    student: Sequence[Tensor], teacher: Sequence[Tensor], inside: Sequence[Tensor]
) -> None:
    """Hold two pyramids and the positions that count against each other.

    Args:
        student, teacher: L tensors (N, C, H_l, W_l).
        inside: L bool tensors (N, 1, H_l, W_l).

    Raises:
        ValueError: they differ in levels or shapes, there is no level, or `inside` is not bool.
    """
    shapes = [[tuple(level.shape) for level in one] for one in (student, teacher, inside)]
    expected = [(images, 1, *grid) for images, _, *grid in shapes[0]]
    if shapes[0] != shapes[1] or shapes[2] != expected:
        raise ValueError(
            f"expected student and teacher of one shape per level and `inside` with one channel, "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}; adapt the student's channels first"
        )
    types = {level.dtype for level in inside}
    if types != {torch.bool}:
        raise ValueError(
            "expected one level or more, with `inside` of torch.bool, got "
            f"{', '.join(map(str, types)) or 'none'}"
        )


def num_positions(inside: Sequence[Tensor], total: Total) -> Tensor:
    """Positions inside their records, of every level: (L,) float32, never 0."""
    return not_zero(total(torch.stack([level.sum() for level in inside]).float()))


def num_images(level: Tensor, total: Total) -> Tensor:
    """N as a scalar on the device of a level (N, ...): float32, never 0."""
    return not_zero(total(level.new_full((), len(level), dtype=torch.float32)))


def squared_difference(student: Tensor, teacher: Tensor, inside: Tensor) -> Tensor:
    """Sum over images, channels and the positions inside; no gradient to the teacher.

    Args:
        student, teacher: (N, C, H, W).
        inside: (N, 1, H, W) bool.
    """
    difference = precise(student) - precise(teacher.detach())
    return difference.masked_fill(~inside, 0.0).square().sum()


def not_zero(count: Tensor) -> Tensor:
    """Where nothing is counted, nothing is divided. A mean over ranks may be below one."""
    return torch.where(count > 0, count, 1.0)
