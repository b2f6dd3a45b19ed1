"""The step `resize`, to one of several lengths of the shortest edge, and what resizing is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from .base import Step

if TYPE_CHECKING:
    from detectron2.data.transforms import Transform

    from configs.nodes import ViewsConfig


class Resizing(Step):
    """A step whose outcome is the new size: detectron2's `ResizeTransform`, bilinear by Pillow."""

    def sizes_after(self, outcomes: NDArray[Any], sizes: NDArray[np.int64]) -> NDArray[Any]:
        """See `Step`."""
        return outcomes

    def transforms(self, outcome: Any, size: tuple[int, int]) -> list[Transform]:
        """See `Step`."""
        from detectron2.data.transforms import ResizeTransform
        from PIL.Image import Resampling

        return [ResizeTransform(*size, *outcome, Resampling.BILINEAR)]


@dataclass(frozen=True)
class Resize(Resizing):
    """detectron2's `ResizeShortestEdge` with a choice of lengths.

    Version 1: on uint8 RGB.

    Attributes:
        scales: lengths to choose from, pixels.
        max_size: longest edge allowed, pixels.
    """

    name: ClassVar[str] = "resize"
    draws: ClassVar[tuple[int, ...]] = (1,)
    remedy: ClassVar[str] = "raise VIEWS.MAX_SIZE or leave the image out by DATASET.IMAGE_LIST"

    scales: tuple[int, ...]
    max_size: int

    @classmethod
    def from_config(cls, config: ViewsConfig) -> Self | None:
        """See `Step`."""
        if not config.scales:
            return None
        return cls(scales=config.scales, max_size=config.max_size)

    def draw(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Step`."""
        chosen = self.choose(seeds, len(self.scales))
        shortest = np.asarray(self.scales, dtype=np.float64)[chosen]
        # As detectron2's `ResizeShortestEdge.get_output_shape`, in the same order: another order
        # could round to another pixel.
        height, width = sizes.T
        factor = shortest / np.minimum(height, width)
        is_wide = height < width
        new_height = np.where(is_wide, shortest, factor * height)
        new_width = np.where(is_wide, factor * width, shortest)
        longest = np.maximum(new_height, new_width)
        shrink = np.where(longest > self.max_size, self.max_size * 1.0 / longest, 1.0)
        new = np.stack([new_height * shrink, new_width * shrink], axis=1)
        return (new + 0.5).astype(np.int64)

    def largest_size(self, largest: tuple[int, int]) -> tuple[int, int]:
        """See `Step`."""
        return max(self.scales), self.max_size
