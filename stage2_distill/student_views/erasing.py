"""The step `erasing`, for the student alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from detectron2.data.transforms import ColorTransform, Transform
from numpy.typing import NDArray

from dataset.views import Step
from dataset.views.colour import Pixels

# Sides of a rectangle differ at most by this factor.
_MOST_ELONGATED = 3.0
_GREY = 128


@dataclass(frozen=True)
class Erasing(Step):
    """A rectangle of grey (Random Erasing, Zhong et al., 2017).

    Its outcome is top, left, height and width, pixels; none has a height of 0.

    Attributes:
        probability: share of the views that have one.
        low, high: ends of the range of its share of the view's area.
    """

    name: ClassVar[str] = "erasing"
    # Whether, area, shape, top, left.
    draws: ClassVar[tuple[int, ...]] = (17, 18, 19, 20, 21)

    probability: float
    low: float
    high: float

    def draw(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Step`."""
        shares = self.low + self.uniform(seeds, 1) * (self.high - self.low)
        side = np.sqrt(shares * sizes.prod(axis=1))
        longer = np.sqrt(_MOST_ELONGATED ** (2 * self.uniform(seeds, 2) - 1))
        wanted = np.stack([side * longer, side / longer], axis=1)
        erased = np.minimum(np.round(wanted).astype(np.int64), sizes)
        erased[self.uniform(seeds) >= self.probability] = 0
        spare = sizes - erased + 1
        corners = [self.choose(seeds, spare[:, place], 3 + place) for place in (0, 1)]
        return np.concatenate([np.stack(corners, axis=1), erased], axis=1)

    def transforms(self, outcome: Any, size: tuple[int, int]) -> list[Transform]:
        """See `Step`."""
        top, left, height, width = outcome
        place = slice(top, top + height), slice(left, left + width)
        return [ColorTransform(partial(_erased, place))] if height and width else []


def _erased(place: tuple[slice, slice], pixels: Pixels) -> Pixels:
    pixels = pixels.copy()
    pixels[place] = _GREY
    return pixels
