"""The step `brightness`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .colour import ColourStep, Pixels, looked_up, rounded


@dataclass(frozen=True)
class Brightness(ColourStep):
    """detectron2's `RandomBrightness`, rounded: every level times a factor."""

    name: ClassVar[str] = "brightness"
    draws: ClassVar[tuple[int, ...]] = (10,)

    @staticmethod
    def changed(strength: int, pixels: Pixels) -> Pixels:
        """See `ColourStep`."""
        return looked_up(rounded(np.arange(256) * strength), pixels)
