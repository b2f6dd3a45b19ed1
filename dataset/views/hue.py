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
        return in_strips(partial(_turned, _shares(strength)), pixels)


def _turned(shares: Sequence[NDArray[np.uint16]], planes: Pixels) -> Pixels:
    """Turn the hues of planes (3, h, W); `shares` as `_shares` has them."""
    high = planes.max(axis=0)
    spread = high - planes.min(axis=0)
    hue = _hue(planes, high, spread)
    wide = spread.astype(np.uint16)
    turned = np.empty_like(planes)
    for plane, share in zip(turned, shares, strict=True):
        # At most 255 x 256 and a half: 16 bits hold it.
        part = share.take(hue)
        part *= wide
        part += _SIXTH // 2
        part //= _SIXTH
        np.subtract(high, part, out=plane, casting="unsafe")
    return turned


def _shares(turn: int) -> list[NDArray[np.uint16]]:
    """Of each channel, by hue from -256 on: what part of the spread it lies below the highest."""
    hue = np.arange(-_SIXTH, 5 * _SIXTH + 1) + turn
    places = [(hue + sixths * _SIXTH) % _CIRCLE for sixths in (5, 3, 1)]
    shares = [np.clip(np.minimum(one, 4 * _SIXTH - one), 0, _SIXTH) for one in places]
    return [one.astype(np.uint16) for one in shares]


def _hue(planes: Pixels, high: Pixels, spread: Pixels) -> NDArray[np.intp]:
    """Hues, (h, W), in units of the circle, from -256 to 1280 counted from 0; of grey any."""
    red, green, blue = planes.astype(np.int16)
    is_red, is_green = high == planes[0], high == planes[1]
    difference = np.where(is_red, green - blue, np.where(is_green, blue - red, red - green))
    start = np.where(is_red, _STARTS[0], np.where(is_green, _STARTS[1], _STARTS[2]))
    number = difference.astype(np.intp)
    number += 255
    number <<= 8
    number += spread
    start += _QUOTIENTS.take(number)
    return start.astype(np.intp)


def _quotients() -> NDArray[np.int16]:
    """256 x difference / spread to the nearest, for differences from -255 on and 256 spreads each.

    No difference of two channels is larger than the spread of the three; that of grey is 0.
    """
    spreads = np.maximum(np.arange(256), 1)
    differences = np.arange(-255, 256)[:, None]
    exact = (2 * _SIXTH * differences + spreads) // (2 * spreads)
    return np.clip(exact, -_SIXTH, _SIXTH).astype(np.int16).ravel()


# Division is the slowest of all, and there are few pairs to divide.
_QUOTIENTS = _quotients()
# Where the hues of red, green and blue are.
_STARTS = np.array([1, 3, 5], np.int16) * _SIXTH
