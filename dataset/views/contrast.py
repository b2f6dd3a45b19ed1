"""The step `contrast`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .colour import ONE, ColourStep, Pixels, rounded


@dataclass(frozen=True)
class Contrast(ColourStep):
    """detectron2's `RandomContrast`, rounded: all distances from the mean times a factor."""

    name: ClassVar[str] = "contrast"
    draws: ClassVar[tuple[int, ...]] = (11,)

    @staticmethod
    def changed(strength: int, pixels: Pixels) -> Pixels:
        """See `ColourStep`."""
        mean = (int(pixels.sum(dtype=np.uint64)) << 16) // pixels.size
        return np.take(rounded(np.arange(256) * strength + ((ONE - strength) * mean >> 16)), pixels)
