"""The step `saturation`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .colour import HALF, ONE, ColourStep, Pixels, cut, grey_of, in_strips


@dataclass(frozen=True)
class Saturation(ColourStep):
    """detectron2's `RandomSaturation`, rounded: every level's distance from grey times a factor."""

    name: ClassVar[str] = "saturation"
    draws: ClassVar[tuple[int, ...]] = (12,)

    @staticmethod
    def changed(strength: int, pixels: Pixels) -> Pixels:
        """See `ColourStep`."""
        return in_strips(partial(_changed, strength), pixels, np.int32)


def _changed(strength: int, planes: NDArray[np.int32]) -> NDArray[np.int32]:
    grey = grey_of(planes)
    grey *= ONE - strength
    grey += HALF  # here, where there is one plane
    planes *= strength
    planes += grey
    return cut(planes)
