"""The step `fixed_size`: every view has the same height and width."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from .base import Step

if TYPE_CHECKING:
    from detectron2.data.transforms import Transform

    from configs.nodes import ViewsConfig

# The grey of padding, as detectron2 has it.
_GREY = 128


@dataclass(frozen=True)
class FixedSize(Step):
    """detectron2's `FixedSizeCrop`: what is too long is cut, what is too short is padded with grey.

    Its outcome is the top and left corner of the cut. One draw decides both, as in detectron2.

    Attributes:
        size: height and width, pixels.
    """

    name: ClassVar[str] = "fixed_size"
    draws: ClassVar[tuple[int, ...]] = (8,)
    cuts: ClassVar[bool] = True

    size: tuple[int, int]

    @classmethod
    def from_config(cls, config: ViewsConfig) -> Self | None:
        """See `Step`."""
        if not config.fixed_size:
            return None
        height, width = config.fixed_size
        return cls(size=(height, width))

    def draw(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Step`."""
        spare = np.maximum(sizes - np.asarray(self.size), 0)
        return np.round(spare * self.uniform(seeds)[:, None]).astype(np.int64)

    def sizes_after(self, outcomes: NDArray[Any], sizes: NDArray[np.int64]) -> NDArray[Any]:
        """See `Step`."""
        return np.broadcast_to(np.asarray(self.size), sizes.shape)

    def transforms(self, outcome: Any, size: tuple[int, int]) -> list[Transform]:
        """See `Step`."""
        from detectron2.data.transforms import CropTransform

        top, left = outcome
        height, width = (min(pair) for pair in zip(size, self.size, strict=True))
        done: list[Transform] = []
        if (height, width) != size:
            done.append(CropTransform(left, top, width, height, size[1], size[0]))
        if (height, width) != self.size:
            below, right = self.size[0] - height, self.size[1] - width
            done.append(_clipping_pad()(0, 0, right, below, width, height, _GREY))
        return done

    def largest_size(self, largest: tuple[int, int]) -> tuple[int, int]:
        """See `Step`."""
        return min(self.size), max(self.size)


@cache
def _clipping_pad() -> type[Transform]:
    from detectron2.data.transforms import PadTransform

    class ClippingPad(PadTransform):
        """Clips boxes on the padded sides: they would reach from the image into the padding."""

        def apply_box(self, box: NDArray[Any]) -> NDArray[Any]:
            right = self.orig_w if self.x1 else np.inf
            below = self.orig_h if self.y1 else np.inf
            return super().apply_box(np.minimum(box, [right, below] * 2))

    return ClippingPad
