"""The step `grayscale`, for the student alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from detectron2.data.transforms import ColorTransform, Transform
from numpy.typing import NDArray

from dataset.views import Step
from dataset.views.colour import Pixels, grey_of, in_strips


@dataclass(frozen=True)
class Grayscale(Step):
    """A view without colours; its outcome is whether it loses them.

    Attributes:
        probability: share of the views that do.
    """

    name: ClassVar[str] = "grayscale"
    draws: ClassVar[tuple[int, ...]] = (14,)

    probability: float

    def draw(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `Step`."""
        return self.uniform(seeds) < self.probability

    def transforms(self, outcome: Any, size: tuple[int, int]) -> list[Transform]:
        """See `Step`."""
        return [ColorTransform(_grey)] if outcome else []


def _grey(pixels: Pixels) -> Pixels:
    return in_strips(lambda planes: [grey_of(planes)] * 3, pixels, np.int32)
