"""The step `crop`: a part of the image, at a drawn position."""

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


@dataclass(frozen=True)
class Crop(Step):
    """detectron2's `RandomCrop`, of its four types; its outcome is top, left, height and width.

    Attributes:
        kind: `relative`, `relative_range`, `absolute` or `absolute_range`.
        size: shares of height and width, or the least of them; height and width, or the least and
            most of both, pixels.
    """

    name: ClassVar[str] = "crop"
    # Height, width, top, left.
    draws: ClassVar[tuple[int, ...]] = (4, 5, 6, 7)
    remedy: ClassVar[str] = (
        "raise the size in VIEWS.CROP or leave the image out by DATASET.IMAGE_LIST"
    )
    cuts: ClassVar[bool] = True
    in_plain: ClassVar[bool] = False

    kind: str
    size: tuple[float, float]

    @classmethod
    def from_config(cls, config: ViewsConfig) -> Self | None:
        """See `Step`."""
        if not config.crop:
            return None
        kind, *size = config.crop
        return cls(kind=str(kind), size=(float(size[0]), float(size[1])))

    def draw(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Step`."""
        cropped = self._sizes(seeds, sizes)
        spare = sizes - cropped + 1
        corners = [self.choose(seeds, spare[:, side], 2 + side) for side in (0, 1)]
        return np.concatenate([np.stack(corners, axis=1), cropped], axis=1)

    def _sizes(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Heights and widths, (N, 2), as detectron2's `RandomCrop.get_crop_size`."""
        if self.kind == "absolute":
            return np.minimum(np.asarray(self.size, dtype=np.int64), sizes)
        if self.kind == "absolute_range":
            least, most = (np.minimum(sizes, int(one)) for one in self.size)
            drawn = [self.choose(seeds, (most - least + 1)[:, side], side) for side in (0, 1)]
            return least + np.stack(drawn, axis=1)
        shares: NDArray[Any] = np.asarray(self.size)
        if self.kind == "relative_range":
            shares = shares.astype(np.float32)
            drawn_shares = np.stack([self.uniform(seeds, side) for side in (0, 1)], axis=1)
            shares = shares + drawn_shares * (1 - shares)
        return (sizes * shares + 0.5).astype(np.int64)

    def sizes_after(self, outcomes: NDArray[Any], sizes: NDArray[np.int64]) -> NDArray[Any]:
        """See `Step`."""
        return outcomes[:, 2:]

    def transforms(self, outcome: Any, size: tuple[int, int]) -> list[Transform]:
        """See `Step`."""
        top, left, height, width = outcome
        return [_clipping_crop()(left, top, width, height, size[1], size[0])]


@cache
def _clipping_crop() -> type[Transform]:
    from detectron2.data.transforms import CropTransform

    class ClippingCrop(CropTransform):
        """Clips boxes too: detectron2 clips them at the end, behind what was padded meanwhile."""

        def apply_box(self, box: NDArray[Any]) -> NDArray[Any]:
            return super().apply_box(box).clip(0, [self.w, self.h] * 2)

    return ClippingCrop
