"""The pixels of a view."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataset.pixels import read_pixels
from storage.checksums import crc32c

from .base import Step, named
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
        ValueError: a step of the user's fails, or gives other pixels than it planned; it is named,
            and no `ImageError`.
    """
    from detectron2.data.transforms import TransformList

    applied, done = read_pixels(path, view.sizes[0]), []
    for (step, transforms), size in zip(view.transforms_of_steps(), view.sizes[1:], strict=True):
        with named(step):
            applied = transforms.apply_image(applied)
        _check_pixels(step, applied, size)
        done.append(transforms)
    pixels = _contiguous(applied)
    return RenderedView(pixels=pixels, transforms=TransformList(done), crc32c=crc32c(pixels.data))


def _check_pixels(step: Step, pixels: Any, size: tuple[int, int]) -> None:
    if not isinstance(pixels, np.ndarray):
        got = type(pixels).__name__
    elif pixels.shape != (*size, 3) or pixels.dtype != np.uint8:
        got = f"{pixels.dtype} of {pixels.shape}"
    else:
        return
    raise ValueError(
        f"step {step.name}: expected uint8 pixels of shape {(*size, 3)}, as planned, got {got}"
    )


def _contiguous(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy: what Pillow hands out may be read-only, and a mirrored view is not contiguous."""
    if pixels.flags.c_contiguous:
        return pixels.copy()
    copy = np.empty(pixels.shape, dtype=np.uint8)
    # Triples in reverse take numpy four times as long as one channel after the other.
    for channel in range(pixels.shape[2]):
        copy[..., channel] = pixels[..., channel]
    return copy
