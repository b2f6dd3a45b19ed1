"""The pixels of a view."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dataset.pixels import read_pixels
from storage.checksums import crc32c

from .planning import View

if TYPE_CHECKING:
    from detectron2.data.transforms import TransformList


@dataclass(frozen=True, kw_only=True)
class RenderedView:
    """The pixels of a view and how they came about.

    Attributes:
        pixels: (H, W, 3) uint8, RGB, contiguous and writable.
        transforms: detectron2's list of what was applied, for the ground-truth boxes.
        crc32c: CRC32C of the bytes of `pixels`.
    """

    pixels: NDArray[np.uint8]
    transforms: TransformList
    crc32c: int

    def sample(self, side: int) -> NDArray[np.uint8]:
        """Pixels in the middle of each of `side` x `side` parts: (side, side, 3) uint8."""
        middle = 2 * np.arange(side) + 1
        rows, columns = (middle * length // (2 * side) for length in self.pixels.shape[:2])
        return np.ascontiguousarray(self.pixels[rows[:, None], columns])


def render(path: str | os.PathLike[str], view: View) -> RenderedView:
    """Read an image, rotate it as its EXIF data say, and apply a view's steps.

    Args:
        path: the image file.
        view: what `plan_view` decided for this image.

    Raises:
        FileNotFoundError, OSError, ImageError: as `dataset.pixels.read_pixels`; the size that the
            view was planned for is the one expected.
        ValueError: the steps, those of the user's, gave other pixels than they planned.
    """
    image = read_pixels(path, view.sizes[0])
    transforms = view.transforms()
    applied = transforms.apply_image(image)
    expected = (view.height, view.width, 3)
    if applied.shape != expected or applied.dtype != np.uint8:
        raise ValueError(
            f"{os.fspath(path)}: expected uint8 pixels of shape {expected} from the steps "
            f"{', '.join(step.name for step, _ in view.steps)}, got {applied.dtype} of "
            f"{applied.shape}"
        )
    pixels = _contiguous(applied)
    return RenderedView(pixels=pixels, transforms=transforms, crc32c=crc32c(pixels.data))


def _contiguous(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy: what Pillow hands out may be read-only, and a mirrored view is not contiguous."""
    if pixels.flags.c_contiguous:
        return pixels.copy()
    copy = np.empty(pixels.shape, dtype=np.uint8)
    # Triples in reverse take numpy four times as long as one channel after the other.
    for channel in range(pixels.shape[2]):
        copy[..., channel] = pixels[..., channel]
    return copy
