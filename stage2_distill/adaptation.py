"""The layer that brings the student's features to the teacher's before they are compared.

It is trained with the student, used by the feature and relation losses alone, and left out of the
student's checkpoint. Over a whole pyramid it would cost a twentieth of the student's own step, so
it is computed only where the pooling of the GIs reads it.

Shape letters: N images, C channels (c of the student, d of the teacher), H and W the grid of a
level, P cells that are read, Q cells that they depend on, k the side of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import GidConfig

_KERNELS = {"conv3x3": 3, "conv1x1": 1}


class Adaptation(nn.Module):
    """One convolution shared by the levels, or nothing.

    With equal channel counts it starts as the identity: training starts from the losses of `none`
    and departs from them only as far as that lowers the loss. With different counts no channel of
    one side stands for one of the other, so it starts like detectron2's FPN convolutions (Xavier
    uniform with the variance kept over the fan-in), which keeps the features' scale.
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
        size = _KERNELS[kind]
        self.conv = nn.Conv2d(student_channels, teacher_channels, size, padding=size // 2)
        if student_channels == teacher_channels:
            nn.init.dirac_(self.conv.weight)
        else:
            nn.init.kaiming_uniform_(self.conv.weight, a=1)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(
        self, features: Sequence[Tensor], cells: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Map the student's pyramid to the teacher's channels.

        Args:
            features: L tensors (N, c, H_l, W_l).
            cells: L masks (N, H_l, W_l) bool of the cells that will be read (`GiPooler.cells`);
                the rest of the result is undefined. None: all.

        Returns:
            L tensors (N, d, H_l, W_l).
        """
        if self.conv is None:
            return list(features)
        if cells is None:
            return [self.conv(level) for level in features]
        return [
            _convolve(self.conv, level, wanted)
            for level, wanted in zip(features, cells, strict=True)
        ]


def _convolve(conv: nn.Conv2d, level: Tensor, cells: Tensor) -> Tensor:
    """Apply the convolution at the wanted cells, or everywhere where that costs no more."""
    if 2 * int(cells.sum()) >= cells.numel():
        return conv(level)
    images, _, height, width = level.shape
    side = conv.kernel_size[0]
    halo = F.max_pool2d(cells.float(), side, stride=1, padding=side // 2) > 0
    # Places once, not masks again and again: a GPU is waited for at every mask.
    around, (image, row, column) = halo.nonzero(as_tuple=True), cells.nonzero(as_tuple=True)
    sources = level.movedim(1, -1)[around]  # (Q, c)
    # Number the halo's cells; everything else, the border included, is a row of zeros.
    numbers = torch.full_like(cells, len(sources), dtype=torch.long)
    numbers[around] = torch.arange(len(sources), device=level.device)
    numbers = F.pad(numbers, (side // 2,) * 4, value=len(sources))
    taps = [numbers[image, row + y, column + x] for y in range(side) for x in range(side)]
    patches = F.pad(sources, (0, 0, 0, 1))[torch.stack(taps, dim=1)].flatten(1)  # (P, k * k * c)
    values = F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
    result = values.new_zeros((images, conv.out_channels, height, width))
    result.movedim(1, -1)[image, row, column] = values
    return result
