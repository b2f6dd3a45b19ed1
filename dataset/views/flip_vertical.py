"""The step `flip_vertical`: upside down."""

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
class FlipVertical(Step):
    """detectron2's vertical flip; its outcome is whether the view is upside down.

    Attributes:
        probability: share of the views that are, above 0 and at most 1.
    """

    name: ClassVar[str] = "flip_vertical"
    draws: ClassVar[tuple[int, ...]] = (9,)

    probability: float

    @classmethod
    def from_config(cls, config: ViewsConfig) -> Self | None:
        """See `Step`."""
        return cls(probability=config.flip_vertical) if config.flip_vertical else None

    def draw(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `Step`."""
        return self.uniform(seeds) < self.probability

    def transforms(self, outcome: Any, size: tuple[int, int]) -> list[Transform]:
        """See `Step`."""
        return [_upside_down()(size[0])] if outcome else []


@cache
def _upside_down() -> type[Transform]:
    from detectron2.data.transforms import VFlipTransform

    class UpsideDown(VFlipTransform):
        """Without PyTorch, which detectron2's takes and which warns of read-only pixels."""

        def apply_image(self, img: NDArray[Any]) -> NDArray[Any]:
            return img[::-1]

    return UpsideDown
