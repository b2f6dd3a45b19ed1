"""What the steps that change colours have in common.

They work on uint8 by lookup tables and integer arithmetic alone, so that every machine and every
version of a library gives the same pixels. Factors are whole numbers of 1/65536.

Shape letters: N views, H and W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
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
_HALF = ONE >> 1
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


def in_strips(change: Callable[[Pixels], Pixels], pixels: Pixels) -> Pixels:
    """Apply what looks at each pixel alone to a few rows at a time, which stay in the cache."""
    changed = np.empty_like(pixels)
    for start in range(0, len(pixels), _STRIP):
        changed[start : start + _STRIP] = change(pixels[start : start + _STRIP])
    return changed


def rounded(scaled: NDArray[Any]) -> Pixels:
    """Whole levels, 0 to 255, of levels in units of 1/65536."""
    return np.clip((scaled + _HALF) >> 16, 0, 255).astype(np.uint8)


def grey_of(pixels: Pixels) -> NDArray[np.int32]:
    """Luminance of (H, W, 3) pixels, (H, W), by the weights of ITU-R 601 as Pillow has them."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + _HALF) >> 16
