"""What the steps that change colours have in common.

They work on uint8 by lookup tables and integer arithmetic alone, so that every machine and every
version of a library gives the same pixels. Factors are whole numbers of 1/65536.

Shape letters: N views, H and W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from .base import Step

if TYPE_CHECKING:
    from detectron2.data.transforms import Transform

    from configs.nodes import ViewsConfig

Pixels = NDArray[np.uint8]

# A factor of 1, and how to round what was multiplied by one.
ONE = 1 << 16
HALF = ONE >> 1
# Rows.
_STRIP = 16


@dataclass(frozen=True)
class ColourStep(Step):
    """A change of colours by a drawn strength, which leaves boxes alone.

    Its outcome is the strength in whole units.

    Attributes:
        low, high: ends of the strength's range.
    """

    in_plain: ClassVar[bool] = False
    # The strength that changes nothing, and the units in a strength of 1.
    neutral: ClassVar[float] = 1.0
    units: ClassVar[int] = ONE

    low: float
    high: float

    @classmethod
    def from_config(cls, config: ViewsConfig) -> Self | None:
        """See `Step`."""
        return cls.of_range(getattr(config, cls.name))

    @classmethod
    def of_range(cls, ends: tuple[float, ...]) -> Self | None:
        """The step of a strength's range; None where that changes nothing."""
        low, high = ends
        return None if low == high == cls.neutral else cls(low=low, high=high)

    def draw(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Step`."""
        strengths = self.low + self.uniform(seeds) * (self.high - self.low)
        return np.floor(strengths * self.units + 0.5).astype(np.int64)

    def transforms(self, outcome: Any, size: tuple[int, int]) -> list[Transform]:
        """See `Step`."""
        from detectron2.data.transforms import ColorTransform

        return [ColorTransform(partial(self.changed, outcome))]

    @staticmethod
    @abstractmethod
    def changed(strength: int, pixels: Pixels) -> Pixels:
        """Change (H, W, 3) pixels by a strength in whole units."""


def looked_up(levels: NDArray[np.int64], pixels: Pixels) -> Pixels:
    """Every level exchanged for one of 256; numpy would make an index of each pixel first."""
    table = levels.astype(np.uint8).tobytes()
    changed = np.empty_like(pixels)
    # The bytes of a whole view would be fresh memory twice, and cost more than the exchange.
    for start in range(0, len(pixels), _STRIP):
        strip = pixels[start : start + _STRIP]
        found = np.frombuffer(strip.tobytes().translate(table), np.uint8)
        changed[start : start + _STRIP] = found.reshape(strip.shape)
    return changed


def in_strips(
    change: Callable[[NDArray[Any]], Iterable[NDArray[Any]]],
    pixels: Pixels,
    dtype: type[np.integer[Any]] = np.uint8,
) -> Pixels:
    """Apply what looks at each pixel alone to a few rows at a time, which stay in the cache.

    Args:
        change: gives, of planes (3, h, W), those after it, 0 to 255; it may write into them.
        pixels: (H, W, 3).
        dtype: of the planes that it takes.
    """
    height, width, channels = pixels.shape
    changed = np.empty_like(pixels)
    buffer = np.empty((channels, min(height, _STRIP), width), dtype)
    for start in range(0, height, _STRIP):
        strip = slice(start, min(start + _STRIP, height))
        planes = buffer[:, : strip.stop - start]
        # One channel after the other, here and back: triples take numpy several times as long.
        for channel in range(channels):
            planes[channel] = pixels[strip, :, channel]
        for channel, plane in enumerate(change(planes)):
            changed[strip, :, channel] = plane
    return changed


def rounded(scaled: NDArray[Any]) -> NDArray[Any]:
    """Whole levels, 0 to 255, in place of levels in units of 1/65536."""
    scaled += HALF
    return cut(scaled)


def cut(scaled: NDArray[Any]) -> NDArray[Any]:
    """As `rounded`, of levels that have the half already."""
    scaled >>= 16
    return np.clip(scaled, 0, 255, out=scaled)


def grey_of(planes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Luminance of planes (3, h, W), (h, W), by the weights of ITU-R 601 as Pillow has them."""
    red, green, blue = planes
    grey = 19595 * red
    grey += 38470 * green
    grey += 7471 * blue
    grey += HALF
    grey >>= 16
    return grey
