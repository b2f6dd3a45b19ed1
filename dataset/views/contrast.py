"""The step `contrast`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .colour import ONE, ColourStep, Pixels, looked_up, rounded


@dataclass(frozen=True)
class Contrast(ColourStep):
    """detectron2's `RandomContrast`, rounded: all distances from the mean times a factor."""

    name: ClassVar[str] = "contrast"
    draws: ClassVar[tuple[int, ...]] = (11,)

    @staticmethod
    def changed(strength: int, pixels: Pixels) -> Pixels:
        """See `ColourStep`."""
        # 32 bits hold the sum of a row, and are added up in half the time.
        rows = pixels.reshape(len(pixels), -1).sum(axis=1, dtype=np.uint32)
        mean = (int(rows.sum(dtype=np.uint64)) << 16) // pixels.size
        levels = np.arange(256) * strength + ((ONE - strength) * mean >> 16)
        return looked_up(rounded(levels), pixels)
