"""The step `resize_scale`: large-scale jitter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from .resize import Resizing

if TYPE_CHECKING:
    from configs.nodes import ViewsConfig


@dataclass(frozen=True)
class ResizeScale(Resizing):
    """detectron2's `ResizeScale`: to fit inside a target times a drawn factor, keeping the aspect.

    Version 1: on uint8 RGB, as in the step `resize`.

    Attributes:
        low, high: ends of the factor's range.
        target: height and width, pixels.
    """

    name: ClassVar[str] = "resize_scale"
    draws: ClassVar[tuple[int, ...]] = (3,)
    remedy: ClassVar[str] = (
        "raise the lower end of VIEWS.SCALE_RANGE or leave the image out by DATASET.IMAGE_LIST"
    )

    low: float
    high: float
    target: tuple[int, int]

    @classmethod
    def from_config(cls, config: ViewsConfig) -> Self | None:
        """See `Step`."""
        if not config.scale_range:
            return None
        low, high = config.scale_range
        height, width = config.fixed_size
        return cls(low=low, high=high, target=(height, width))

    def draw(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Step`."""
        factor = self.low + self.uniform(seeds) * (self.high - self.low)
        # As detectron2's `ResizeScale._get_resize`, in the same order.
        box = np.asarray(self.target) * factor[:, None]
        scale = (box / sizes).min(axis=1, keepdims=True)
        return np.round(sizes * scale).astype(np.int64)

    def largest_size(self, largest: tuple[int, int]) -> tuple[int, int]:
        """See `Step`."""
        short, long = (math.ceil(side * self.high) for side in sorted(self.target))
        return short, long
