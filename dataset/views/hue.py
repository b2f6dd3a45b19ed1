"""The step `hue`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .colour import ColourStep, Pixels, in_strips

# Units between two of the six corners of the circle of hues: red, yellow, green, ...
_SIXTH = 256
_CIRCLE = 6 * _SIXTH


@dataclass(frozen=True)
class Hue(ColourStep):
    """Hues turned by a share of their circle, lightness and saturation kept (HSV)."""

    name: ClassVar[str] = "hue"
    draws: ClassVar[tuple[int, ...]] = (13,)
    neutral: ClassVar[float] = 0.0
    units: ClassVar[int] = _CIRCLE

    @staticmethod
    def changed(strength: int, pixels: Pixels) -> Pixels:
        """See `ColourStep`."""
        return in_strips(partial(_turned, strength), pixels)


def _turned(turn: int, pixels: Pixels) -> Pixels:
    channels = [pixels[..., channel].astype(np.int32) for channel in range(3)]
    high = np.maximum(np.maximum(channels[0], channels[1]), channels[2])
    spread = high - np.minimum(np.minimum(channels[0], channels[1]), channels[2])
    hue = _hue(channels, high, spread) + turn
    turned = np.empty_like(pixels)
    for channel, sixths in enumerate((5, 3, 1)):
        place = (hue + sixths * _SIXTH) % _CIRCLE
        share = np.clip(np.minimum(place, 4 * _SIXTH - place), 0, _SIXTH)
        turned[..., channel] = high - ((spread * share + _SIXTH // 2) // _SIXTH)
    return turned


def _hue(
    channels: Sequence[NDArray[np.int32]], high: NDArray[np.int32], spread: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Hues in units of the circle, (H, W); that of grey does not matter."""
    red, green, blue = channels
    is_red = high == red
    is_green = ~is_red & (high == green)
    difference = np.where(is_red, green - blue, np.where(is_green, blue - red, red - green))
    start = np.where(is_red, 0, np.where(is_green, 2, 4)) * _SIXTH
    least = np.maximum(spread, 1)
    # Rounded to the nearest.
    return start + (2 * _SIXTH * difference + least) // (2 * least)
