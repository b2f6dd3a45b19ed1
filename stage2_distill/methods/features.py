"""What methods that compare pyramids have in common.

Shape letters: N images, channels c of the student and d of the teacher, L levels that are compared,
H_l and W_l the grid of a level.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from .base import Method, Pair, Step
from .layers import apply_each, per_level, where_channels_differ


class Pyramids(NamedTuple):
    """Two pyramids of a step, on the levels that a method compares.

    Attributes:
        student: L tensors (N, c, H_l, W_l).
        teacher: L tensors (N, d, H_l, W_l).
        inside: L bool tensors (N, 1, H_l, W_l), the positions of each record's own grid.
    """

    student: list[Tensor]
    teacher: list[Tensor]
    inside: list[Tensor]


class FeatureMethod(Method):
    """A method that compares the levels that its node's `levels` names."""

    # Without names, levels of a larger stride are left out, pixels.
    max_stride: ClassVar[float] = float("inf")

    def __init__(self, config: Any, pair: Pair) -> None:
        """See `Method`."""
        super().__init__(config, pair)
        self.levels = pair.chosen(config, max_stride=self.max_stride)

    @classmethod
    def needs(cls, config: Any) -> tuple[str, ...]:
        """See `Method`."""
        return ("features",)

    @property
    def channels(self) -> dict[str, int]:
        """Those of both sides, as adaptations take them."""
        return {
            "student_channels": self.pair.student_channels,
            "teacher_channels": self.pair.teacher_channels,
        }

    def pyramids(self, step: Step) -> Pyramids:
        """Both sides, before any adaptation."""
        sides = (step.outputs.features, step.teacher.features, step.teacher.inside)
        return Pyramids(*([side[level] for level in self.levels] for side in sides))


class AdaptedMethod(FeatureMethod):
    """One that adapts the student's channels where they are not as many as the teacher's."""

    def __init__(self, config: Any, pair: Pair) -> None:
        """See `Method`."""
        super().__init__(config, pair)
        adapt = partial(where_channels_differ, **self.channels)
        self.adaptations = per_level(adapt, len(self.levels))

    def pyramids(self, step: Step) -> Pyramids:
        """Both sides, of the teacher's channels."""
        found = super().pyramids(step)
        return found._replace(student=apply_each(self.adaptations, found.student))
