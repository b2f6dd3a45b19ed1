"""The step `saturation`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from .colour import ONE, ColourStep, Pixels, grey_of, in_strips, rounded


@dataclass(frozen=True)
class Saturation(ColourStep):
    """detectron2's `RandomSaturation`, rounded: every level's distance from grey times a factor."""

    name: ClassVar[str] = "saturation"
    draws: ClassVar[tuple[int, ...]] = (12,)

    @staticmethod
    def changed(strength: int, pixels: Pixels) -> Pixels:
        """See `ColourStep`."""
        return in_strips(partial(_changed, strength), pixels)


def _changed(strength: int, pixels: Pixels) -> Pixels:
    grey = grey_of(pixels)[..., None] * (ONE - strength)
    return rounded(pixels.astype(np.int32) * strength + grey)
