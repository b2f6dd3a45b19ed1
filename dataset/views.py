"""Deterministic views: which scale and flip an image gets, and the pixels that follow.

A view depends only on `(base_seed, image_id, view)`, never on the worker, the rank, the order or
a global random state. Stage 1 and Stage 2 call the same two functions, `plan_view` (or its
vectorised twin `plan_views`) and `render`, and so see the same pixels.

The hash, version 1. All arithmetic is modulo 2**64; negative integers count as their two's
complement; G = 0x9E3779B97F4A7C15. `mix` is the finaliser of splitmix64 (Steele, Lea and
Flood, OOPSLA 2014; Vigna's constants):

    mix(z):  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
             z = (z ^ (z >> 27)) * 0x94D049BB133111EB
             return z ^ (z >> 31)

    seed  = mix((mix((mix(base_seed + G) ^ image_id) + G) ^ view) + G)
    draw1 = mix(seed + 1 * G)        scale = scales[((draw1 >> 32) * len(scales)) >> 32]
    draw2 = mix(seed + 2 * G)        flipped if (draw2 >> 11) / 2**53 < flip

The draws are the first two outputs of splitmix64 started at the seed, so scale and flip are
independent, and changing one setting leaves the other's outcome alone. Every cache depends on
these numbers: a change needs a new `HASH_VERSION`, and the golden values in the tests say so.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataset.pixels import read_pixels

if TYPE_CHECKING:
    from detectron2.data.transforms import TransformList

    from configs.nodes import ViewsConfig

HASH_NAME = "splitmix64-chain"
HASH_VERSION = 1
RESIZE_NAME = "detectron2 ResizeTransform, Pillow bilinear, uint8 RGB"

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_SCALE_DRAW = 1
_FLIP_DRAW = 2


@dataclass(frozen=True, kw_only=True)
class View:
    """One deterministic augmentation of one image.

    `height` and `width` are the pixels of the view, after resizing; `seed` is the 64-bit hash
    that scale and flip were drawn from.
    """

    image_id: int
    view: int
    seed: int
    flip: bool
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class ViewArrays:
    """The views of many images, one entry an image: what `View` holds, as arrays of length N."""

    image_id: NDArray[np.int64]
    view: int
    seed: NDArray[np.uint64]
    flip: NDArray[np.bool_]
    height: NDArray[np.int32]
    width: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.image_id)

    def __getitem__(self, index: int) -> View:
        return View(
            image_id=int(self.image_id[index]),
            view=self.view,
            seed=int(self.seed[index]),
            flip=bool(self.flip[index]),
            height=int(self.height[index]),
            width=int(self.width[index]),
        )


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


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MULTIPLIER_1) & _MASK
    z = ((z ^ (z >> 27)) * _MULTIPLIER_2) & _MASK
    return z ^ (z >> 31)


def _mix_arrays(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix` for arrays; numpy's array arithmetic wraps modulo 2**64 by itself."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MULTIPLIER_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MULTIPLIER_2)
    return z ^ (z >> np.uint64(31))


def view_seed(base_seed: int, image_id: int, view: int) -> int:
    """Hash `(base_seed, image_id, view)` to 64 bits, as the module's text writes down."""
    state = _mix((base_seed + _GOLDEN) & _MASK)
    state = _mix(((state ^ (image_id & _MASK)) + _GOLDEN) & _MASK)
    return _mix(((state ^ (view & _MASK)) + _GOLDEN) & _MASK)


def view_seeds(base_seed: int, image_ids: Sequence[int] | NDArray[Any], view: int) -> NDArray[Any]:
    """`view_seed` for many images: (N,) integers to (N,) uint64."""
    ids = np.asarray(image_ids, dtype=np.int64).view(np.uint64)
    golden = np.uint64(_GOLDEN)
    state = _mix_arrays((np.uint64(_mix((base_seed + _GOLDEN) & _MASK)) ^ ids) + golden)
    return _mix_arrays((state ^ np.uint64(view & _MASK)) + golden)


def plan_view(config: ViewsConfig, *, image_id: int, view: int, height: int, width: int) -> View:
    """Decide scale, flip and size of one view.

    Args:
        config: the `VIEWS` node.
        image_id: the image's id in its annotation file.
        view: number of the view, from 0; may be at or beyond `config.num`.
        height: pixels of the stored image, after EXIF rotation.
        width: likewise.

    Raises:
        ValueError: the size is not positive, or the view would have a side of no pixels.
    """
    from detectron2.data.transforms import ResizeShortestEdge

    _require_positive(height, width, image_id)
    seed = view_seed(config.seed, image_id, view)
    scale_draw = _mix((seed + _SCALE_DRAW * _GOLDEN) & _MASK)
    flip_draw = _mix((seed + _FLIP_DRAW * _GOLDEN) & _MASK)
    scale = config.scales[((scale_draw >> 32) * len(config.scales)) >> 32]
    size = ResizeShortestEdge.get_output_shape(height, width, scale, config.max_size)
    if min(size) < 1:
        raise _too_thin(image_id, height, width, config.max_size)
    return View(
        image_id=image_id,
        view=view,
        seed=seed,
        flip=(flip_draw >> 11) * 2.0**-53 < config.flip,
        height=size[0],
        width=size[1],
    )


def plan_views(
    config: ViewsConfig,
    *,
    image_ids: Sequence[int] | NDArray[Any],
    view: int,
    heights: Sequence[int] | NDArray[Any],
    widths: Sequence[int] | NDArray[Any],
) -> ViewArrays:
    """`plan_view` for many images at once: the same numbers, without detectron2.

    Args:
        config: the `VIEWS` node.
        image_ids: (N,) ids.
        view: number of the view, from 0.
        heights: (N,) pixels of the stored images, after EXIF rotation.
        widths: (N,) likewise.

    Raises:
        ValueError: as `plan_view`, for the first image it is true of; or lengths that differ.
    """
    ids = np.asarray(image_ids, dtype=np.int64)
    old_height = np.asarray(heights, dtype=np.int64)
    old_width = np.asarray(widths, dtype=np.int64)
    if not (ids.shape == old_height.shape == old_width.shape and ids.ndim == 1):
        raise ValueError(
            "image_ids, heights and widths must be one-dimensional and of one length, "
            f"got shapes {ids.shape}, {old_height.shape} and {old_width.shape}"
        )
    for bad in np.flatnonzero((old_height < 1) | (old_width < 1))[:1]:
        _require_positive(int(old_height[bad]), int(old_width[bad]), int(ids[bad]))
    seeds = view_seeds(config.seed, ids, view)
    scale_draw = _mix_arrays(seeds + np.uint64(_SCALE_DRAW * _GOLDEN & _MASK))
    flip_draw = _mix_arrays(seeds + np.uint64(_FLIP_DRAW * _GOLDEN & _MASK))
    chosen = ((scale_draw >> np.uint64(32)) * np.uint64(len(config.scales))) >> np.uint64(32)
    scales = np.asarray(config.scales, dtype=np.float64)[chosen.astype(np.int64)]
    height, width = _shortest_edge_shapes(old_height, old_width, scales, config.max_size)
    for bad in np.flatnonzero((height < 1) | (width < 1))[:1]:
        raise _too_thin(int(ids[bad]), int(old_height[bad]), int(old_width[bad]), config.max_size)
    return ViewArrays(
        image_id=ids,
        view=view,
        seed=seeds,
        flip=(flip_draw >> np.uint64(11)).astype(np.float64) * 2.0**-53 < config.flip,
        height=height,
        width=width,
    )


def _shortest_edge_shapes(
    old_height: NDArray[np.int64],
    old_width: NDArray[np.int64],
    scales: NDArray[np.float64],
    max_size: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """detectron2's `ResizeShortestEdge.get_output_shape`, for arrays.

    The same operations in the same order: another order could round to another pixel.
    """
    factor = scales / np.minimum(old_height, old_width)
    is_wide = old_height < old_width
    height = np.where(is_wide, scales, factor * old_height)
    width = np.where(is_wide, factor * old_width, scales)
    longest = np.maximum(height, width)
    shrink = np.where(longest > max_size, max_size * 1.0 / longest, 1.0)
    return (
        (height * shrink + 0.5).astype(np.int32),
        (width * shrink + 0.5).astype(np.int32),
    )


def _require_positive(height: int, width: int, image_id: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(
            f"image {image_id}: height and width must be positive, got {height}x{width}"
        )


def _too_thin(image_id: int, height: int, width: int, max_size: int) -> ValueError:
    return ValueError(
        f"image {image_id}: at VIEWS.MAX_SIZE {max_size} its {height}x{width} pixels (height x "
        "width) would shrink to a side of no pixels; raise VIEWS.MAX_SIZE or leave the image out"
    )


def render(
    path: str | os.PathLike[str], view: View, *, expected_size: tuple[int, int]
) -> RenderedView:
    """Read an image and apply a view to it.

    EXIF rotation first, then detectron2's `ResizeTransform` (Pillow, bilinear), then the flip.

    Args:
        path: the image file.
        view: what `plan_view` decided for this image.
        expected_size: (height, width) that the annotations give the image, after EXIF rotation.

    Raises:
        FileNotFoundError, OSError, ImageError: as `dataset.pixels.read_pixels`.
    """
    import google_crc32c
    from detectron2.data import transforms as T
    from PIL import Image

    image = read_pixels(path, expected_size)
    height, width = expected_size
    steps: list[Any] = [
        T.ResizeTransform(height, width, view.height, view.width, Image.Resampling.BILINEAR)
    ]
    if view.flip:
        steps.append(T.HFlipTransform(view.width))
    transforms = T.TransformList(steps)
    # A copy, because what Pillow hands out may be read-only, and a mirrored view of it is not
    # contiguous.
    pixels = np.array(transforms.apply_image(image), dtype=np.uint8, order="C")
    return RenderedView(
        pixels=pixels, transforms=transforms, crc32c=int(google_crc32c.value(pixels.tobytes()))
    )


def augmentation_fingerprint(config: ViewsConfig) -> dict[str, Any]:
    """Describe everything that decides the pixels of a view, as JSON.

    The number of views is left out, so that a cache can grow by further views.
    """
    return {
        "seed": config.seed,
        "scales": list(config.scales),
        "max_size": config.max_size,
        "flip": config.flip,
        "hash": {"name": HASH_NAME, "version": HASH_VERSION},
        "resize": RESIZE_NAME,
    }
