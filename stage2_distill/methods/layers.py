"""Layers that methods train beside the student, one per level, and leave behind at export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn


def per_level(make: Callable[[], nn.Module], levels: int) -> nn.ModuleList:
    """One layer per level, each with weights of its own."""
    return nn.ModuleList(make() for _ in range(levels))


def apply_each(layers: Iterable[nn.Module], features: Sequence[Tensor]) -> list[Tensor]:
    """Give every level (N, C, H_l, W_l) of a pyramid to its own layer."""
    return [layer(level) for layer, level in zip(layers, features, strict=True)]


def convolution(student_channels: int, teacher_channels: int, side: int) -> nn.Conv2d:
    """A convolution from the student's channels to the teacher's, of an odd side in positions.

    With equal counts it starts as the identity. With different ones no channel of one side stands
    for one of the other, so it starts like detectron2's FPN convolutions (Xavier uniform with the
    variance kept over the fan-in), which keeps the scale of the features.
    """
    conv = nn.Conv2d(student_channels, teacher_channels, side, padding=side // 2)
    if student_channels == teacher_channels:
        nn.init.dirac_(conv.weight)
    else:
        nn.init.kaiming_uniform_(conv.weight, a=1)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def pointwise(student_channels: int, teacher_channels: int) -> nn.Conv2d:
    """A 1x1 `convolution`."""
    return convolution(student_channels, teacher_channels, 1)


def where_channels_differ(student_channels: int, teacher_channels: int) -> nn.Module:
    """The adaptation of a method that asks for none: nothing, or what the channels make needed."""
    if student_channels == teacher_channels:
        return nn.Identity()
    return pointwise(student_channels, teacher_channels)
