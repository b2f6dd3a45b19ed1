"""The step `flip`: mirrored from left to right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from .base import Step

if TYPE_CHECKING:
    from detectron2.data.transforms import Transform

    from configs.nodes import ViewsConfig


@dataclass(frozen=True)
class Flip(Step):
    """detectron2's horizontal flip; its outcome is whether the view is mirrored.

    Attributes:
        probability: share of the views that are, above 0 and at most 1.
    """

    name: ClassVar[str] = "flip"
    draws: ClassVar[tuple[int, ...]] = (2,)

    probability: float

    @classmethod
    def from_config(cls, config: ViewsConfig) -> Self | None:
        """See `Step`."""
        probability: float = getattr(config, cls.name)
        return cls(probability=probability) if probability else None

    def draw(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `Step`."""
        return self.uniform(seeds) < self.probability

    def transforms(self, outcome: Any, size: tuple[int, int]) -> list[Transform]:
        """See `Step`."""
        from detectron2.data.transforms import HFlipTransform

        return [HFlipTransform(size[1])] if outcome else []
