"""The layer that brings the student's features to the teacher's before they are compared.

It is trained with the student, used by the feature and relation losses alone, and left out of the
student's checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map L tensors (N, student channels, H_l, W_l) to (N, teacher channels, H_l, W_l)."""
        if self.conv is None:
            return list(features)
        return [self.conv(level) for level in features]
