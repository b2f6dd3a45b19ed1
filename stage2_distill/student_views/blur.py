"""The step `blur`, for the student alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from detectron2.data.transforms import ColorTransform, Transform
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dataset.views import Step
from dataset.views.colour import Pixels


@dataclass(frozen=True)
class Blur(Step):
    """Pillow's Gaussian blur; its outcome is sigma in pixels, 0 for none.

    Attributes:
        probability: share of the views that are blurred.
        low, high: ends of the range of sigma, pixels.
    """

    name: ClassVar[str] = "blur"
    # Whether, and how much.
    draws: ClassVar[tuple[int, ...]] = (15, 16)

    probability: float
    low: float
    high: float

    def draw(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """See `Step`."""
        sigmas = self.low + self.uniform(seeds, 1) * (self.high - self.low)
        return np.where(self.uniform(seeds) < self.probability, sigmas, 0.0)

    def transforms(self, outcome: Any, size: tuple[int, int]) -> list[Transform]:
        """See `Step`."""
        return [ColorTransform(partial(_blurred, outcome))] if outcome else []


def _blurred(sigma: float, pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))
