"""Scenes of the synthetic set: cluttered backgrounds, light, and objects that overlap.

A scene is a pure function of its size and its random generator.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from dataset.figures import TEXTURES, Color, Figure, Floats, Raster, paint, rasterize


@dataclass(frozen=True, kw_only=True)
class SceneClass:
    """What the objects of one class have in common.

    `hue` in [0, 1) is the colour that most of its objects are near; `textures` are what they may
    wear.
    """

    name: str
    shape: str
    hue: float
    textures: tuple[str, ...]


_TEXTURES = ("plain", "shaded", "speckled", "striped")
# Each class has a hue that its objects are near: a hint, as with fruit or blood cells. Without
# one, a small detector learns next to nothing in a few hundred steps.
CLASSES = tuple(
    SceneClass(name=shape, shape=shape, hue=hue, textures=_TEXTURES)
    for shape, hue in (
        ("disc", 0.02),
        ("triangle", 0.14),
        ("ring", 0.36),
        ("square", 0.6),
        ("star", 0.8),
    )
)
CLASS_NAMES = tuple(one.name for one in CLASSES)
_HUE_SPREAD = 0.035
_DISTRACTORS = ("hexagon", "crescent", "half_disc", "cross", "bar")

# Object sizes, as a share of the image's shorter side: mostly around the typical one.
SIZE_RANGE = (0.16, 0.70)
_TYPICAL_SIZE = 0.36
_SIZE_SPREAD = 0.4
# How often a scene gets 0, 1, 2, ... objects.
_COUNT_SHARES = (0.04, 0.05, 0.1, 0.16, 0.2, 0.2, 0.13, 0.08, 0.04)
# Every object keeps at least this share of its whole area in sight.
MIN_VISIBLE = 0.6
_PLACING_TRIES = 20
_CONTRAST = 0.2


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object as annotated: what is visible of it.

    Attributes:
        class_index: index into `CLASSES`.
        box_xywh_abs: left, top, width, height in pixels, tight around the visible pixels.
        area: visible pixels.
    """

    class_index: int
    box_xywh_abs: tuple[int, int, int, int]
    area: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image, (H, W, 3) uint8 RGB, and its objects."""

    pixels: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


def draw_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Draw one scene of (height, width) pixels."""
    light = rng.uniform(0, 2 * math.pi)
    image = _background(rng, height, width)
    for _ in range(rng.integers(0, 4)):
        shape = _DISTRACTORS[rng.integers(len(_DISTRACTORS))]
        figure = _figure(rng, image, shape, TEXTURES, _size_share(rng))
        paint(image, figure, rasterize(figure, height, width), light)
    owner, class_of = _place_objects(rng, image, light)
    return Scene(
        pixels=_expose(rng, image, light),
        objects=tuple(
            _annotate(owner == number, class_index) for number, class_index in class_of.items()
        ),
    )


def _size_share(rng: np.random.Generator) -> float:
    size = _TYPICAL_SIZE * math.exp(_SIZE_SPREAD * rng.standard_normal())
    return min(max(size, SIZE_RANGE[0]), SIZE_RANGE[1])


def _color(rng: np.random.Generator, most_saturation: float) -> Color:
    """Any colour, up to a saturation."""
    return colorsys.hsv_to_rgb(
        rng.uniform(), rng.uniform(0.05, most_saturation), rng.uniform(0.2, 0.95)
    )


def _class_color(rng: np.random.Generator, hue: float) -> Color:
    """A strong colour near a hue."""
    near = (hue + _HUE_SPREAD * rng.standard_normal()) % 1.0
    return colorsys.hsv_to_rgb(near, rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0))


def _texture_color(rng: np.random.Generator, first: Color) -> Color:
    """A pale colour beside a dark one, a dark one beside a pale one."""
    is_dark = sum(first) < 1.35
    value = rng.uniform(0.75, 1.0) if is_dark else rng.uniform(0.0, 0.25)
    return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.3), value)


def _apart_from(draw: Callable[[], Color], other: Color) -> Color:
    """Draw a colour until it can be told from another, or keep the best of some."""
    colors = [draw()]
    while _contrast(colors[-1], other) < _CONTRAST and len(colors) < 8:
        colors.append(draw())
    return max(colors, key=lambda color: _contrast(color, other))


def _contrast(a: Color, b: Color) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 3


def _figure(
    rng: np.random.Generator,
    image: Floats,
    shape: str,
    textures: tuple[str, ...],
    size_share: float,
    hue: float | None = None,
) -> Figure:
    """Draw up a figure somewhere in the image; without a hue it gets a dull colour."""
    height, width = image.shape[:2]
    radius = max(3.0, size_share * min(height, width) / 2)
    # Half of the figures may reach over the border, by up to half their radius.
    margin = radius * rng.uniform(0.5, 1.5)
    x = rng.uniform(min(margin, width / 2), max(width - margin, width / 2))
    y = rng.uniform(min(margin, height / 2), max(height - margin, height / 2))
    red, green, blue = image[min(int(y), height - 1), min(int(x), width - 1)].tolist()
    first = _apart_from(
        lambda: _color(rng, 0.5) if hue is None else _class_color(rng, hue), (red, green, blue)
    )
    return Figure(
        shape=shape,
        texture=textures[rng.integers(len(textures))],
        x=float(x),
        y=float(y),
        radius=radius,
        angle=float(rng.uniform(0, 2 * math.pi)),
        squeeze=float(rng.uniform(0.72, 1.0)),
        # Stripes narrower than about three pixels could not be seen at all.
        period=max(3.6, radius * rng.uniform(0.5, 0.9)),
        colors=(first, _texture_color(rng, first)),
        noise_seed=int(rng.integers(2**32)),
    )


def _background(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Gradient, clouds, sometimes a pattern, and line clutter: (height, width, 3) float32."""
    start, end = _color(rng, 0.45), _color(rng, 0.45)
    direction = rng.uniform(0, 2 * math.pi)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    ramp = 0.5 + 0.35 * (rows * np.sin(direction) + columns * np.cos(direction))
    ramp += _clouds(rng, height, width, cells=3) * 0.35
    ramp += _clouds(rng, height, width, cells=12) * rng.uniform(0.0, 0.3)
    if rng.uniform() < 0.3:
        turn = rng.uniform(12, 40)
        ramp += 0.12 * np.sin(turn * (rows * np.cos(direction) - columns * np.sin(direction)))
    mix = np.clip(ramp, 0, 1).astype(np.float32)[..., None]
    first, second = np.array(start, dtype=np.float32), np.array(end, dtype=np.float32)
    image = first + mix * (second - first)
    image += _clouds(rng, height, width, cells=6)[..., None] * np.float32(0.08)
    return _clutter(rng, image)


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int) -> Floats:
    """Smooth noise in about [-1, 1]: a coarse random grid, enlarged."""
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _clutter(rng: np.random.Generator, image: Floats) -> Floats:
    """Draw lines and small dots that belong to no object."""
    height, width = image.shape[:2]
    canvas = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    thickest = max(1, round(min(height, width) / 50))
    for _ in range(rng.integers(2, 12)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.9) * width
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        draw.line(
            [(x, y), end], fill=_bytes(_color(rng, 0.9)), width=int(rng.integers(thickest)) + 1
        )
    for _ in range(rng.integers(0, 12)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(0.3, 0.8) * thickest
        draw.ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=_bytes(_color(rng, 0.9))
        )
    return np.asarray(canvas, dtype=np.float32) / np.float32(255)


def _bytes(color: Color) -> tuple[int, int, int]:
    red, green, blue = (round(channel * 255) for channel in color)
    return red, green, blue


def _place_objects(
    rng: np.random.Generator, image: Floats, light: float
) -> tuple[NDArray[np.int16], dict[int, int]]:
    """Paint objects one over the other, none of them hidden too far.

    Returns:
        owner: (H, W) int16, the number of the object that is seen at a pixel, 0 for none.
        class_of: number -> class index, in the order of painting.
    """
    height, width = image.shape[:2]
    owner = np.zeros((height, width), dtype=np.int16)
    whole_area: dict[int, float] = {}
    class_of: dict[int, int] = {}
    for number in range(1, 1 + int(rng.choice(len(_COUNT_SHARES), p=_COUNT_SHARES))):
        class_index = int(rng.integers(len(CLASSES)))
        kind, size = CLASSES[class_index], _size_share(rng)
        for _ in range(_PLACING_TRIES):
            figure = _figure(rng, image, kind.shape, kind.textures, size, kind.hue)
            raster = rasterize(figure, height, width)
            after = _owner_after(owner, raster, number)
            if _all_visible(after, {**whole_area, number: raster.whole_area}):
                paint(image, figure, raster, light)
                owner = after
                whole_area[number], class_of[number] = raster.whole_area, class_index
                break
    return owner, class_of


def _owner_after(owner: NDArray[np.int16], raster: Raster, number: int) -> NDArray[np.int16]:
    after = owner.copy()
    after[raster.rows, raster.columns][raster.coverage >= 0.5] = number
    return after


def _all_visible(owner: NDArray[np.int16], whole_area: dict[int, float]) -> bool:
    visible = np.bincount(owner.ravel(), minlength=max(whole_area) + 1)
    return all(visible[number] >= MIN_VISIBLE * area for number, area in whole_area.items())


def _expose(rng: np.random.Generator, image: Floats, light: float) -> NDArray[np.uint8]:
    """Light the scene and take its picture: uneven light, colour cast, gamma, blur, noise."""
    height, width = image.shape[:2]
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    slope = rng.uniform(0.0, 0.3)
    field = rng.uniform(0.75, 1.1) * (
        1 + slope * (columns * math.cos(light) + rows * math.sin(light))
    )
    cast = rng.uniform(0.88, 1.08, 3).astype(np.float32)
    lit = np.clip(image * field[..., None].astype(np.float32) * cast, 0, 1)
    lit = lit ** np.float32(rng.uniform(0.75, 1.3))
    if rng.uniform() < 0.3:
        picture = Image.fromarray((lit * 255).astype(np.uint8))
        blur = ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.8)) * min(height, width) / 128)
        lit = np.asarray(picture.filter(blur), dtype=np.float32) / np.float32(255)
    noise = rng.standard_normal(lit.shape, dtype=np.float32) * np.float32(rng.uniform(1, 9))
    return np.clip(lit * 255 + noise + 0.5, 0, 255).astype(np.uint8)


def _annotate(visible: NDArray[np.bool_], class_index: int) -> SceneObject:
    rows = np.flatnonzero(visible.any(axis=1))
    columns = np.flatnonzero(visible.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return SceneObject(
        class_index=class_index,
        box_xywh_abs=(left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top),
        area=int(np.count_nonzero(visible)),
    )
