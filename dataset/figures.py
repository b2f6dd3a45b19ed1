"""Figures of the synthetic set: plane shapes with textures, painted with smooth edges.

Colours are RGB, float32 in [0, 1]; pixel centres lie at half-integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Color = tuple[float, float, float]


def _disc(u: Floats, v: Floats) -> Floats:
    return 1 - np.hypot(u, v)


def _ring(u: Floats, v: Floats) -> Floats:
    distance = np.hypot(u, v)
    return np.minimum(1 - distance, distance - 0.52)


def _square(u: Floats, v: Floats) -> Floats:
    return 0.7 - np.maximum(np.abs(u), np.abs(v))


def _cross(u: Floats, v: Floats) -> Floats:
    longer = np.maximum(np.abs(u), np.abs(v))
    shorter = np.minimum(np.abs(u), np.abs(v))
    return np.minimum(0.94 - longer, 0.32 - shorter)


def _polygon(u: Floats, v: Floats, corners: int, inner_radius: float) -> Floats:
    """A regular polygon or star: `corners` tips at radius 1, notches at `inner_radius`."""
    half = math.pi / corners
    # Fold the plane onto one half tip: the edge there is one straight line.
    angle = np.abs((np.arctan2(v, u) % (2 * half)) - half)
    radius = np.hypot(u, v)
    x, y = radius * np.cos(half - angle), radius * np.sin(half - angle)
    notch_x, notch_y = inner_radius * math.cos(half), inner_radius * math.sin(half)
    length = math.hypot(1 - notch_x, notch_y)
    return ((1 - x) * notch_y - y * (1 - notch_x)) / length


def _triangle(u: Floats, v: Floats) -> Floats:
    return _polygon(u, v, 3, 0.5)


def _star(u: Floats, v: Floats) -> Floats:
    return _polygon(u, v, 5, 0.45)


def _hexagon(u: Floats, v: Floats) -> Floats:
    return _polygon(u, v, 6, math.cos(math.pi / 6))


def _crescent(u: Floats, v: Floats) -> Floats:
    return np.minimum(1 - np.hypot(u, v), np.hypot(u - 0.5, v) - 0.8)


def _half_disc(u: Floats, v: Floats) -> Floats:
    return np.minimum(1 - np.hypot(u, v), u)


def _bar(u: Floats, v: Floats) -> Floats:
    return np.minimum(0.98 - np.abs(u), 0.16 - np.abs(v))


# Each function takes coordinates in units of the figure's radius and returns roughly the
# distance to the outline, positive inside. No figure reaches beyond its radius.
SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "hexagon": _hexagon,
    "crescent": _crescent,
    "half_disc": _half_disc,
    "bar": _bar,
}
TEXTURES = ("plain", "shaded", "speckled", "striped", "checked")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure to paint. Lengths are pixels of the image.

    `squeeze` in (0, 1] narrows the figure along its own second axis; `period` is the repeat of
    its stripes or squares; `noise_seed` feeds the speckles.
    """

    shape: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float
    squeeze: float
    period: float
    colors: tuple[Color, Color]
    noise_seed: int


@dataclass(frozen=True, kw_only=True)
class Raster:
    """A figure's window in the image and what it covers there.

    Attributes:
        rows, columns: the window, clipped to the image.
        coverage: (h, w) float32 in [0, 1], share of each pixel that is covered.
        distance: (h, w) float32, pixels to the outline, positive inside.
        u, v: (h, w) float32, the figure's own axes, in pixels.
        whole_area: pixels that the figure would cover if the image had no border.
    """

    rows: slice
    columns: slice
    coverage: Floats
    distance: Floats
    u: Floats
    v: Floats
    whole_area: float


def rasterize(figure: Figure, height: int, width: int) -> Raster:
    """Work out which pixels of a (height, width) image a figure covers."""
    # Two pixels more than the figure, for its smooth edge and its shadow.
    reach = int(np.ceil(figure.radius)) + 2
    top, left = int(figure.y) - reach, int(figure.x) - reach
    rows = np.arange(top, top + 2 * reach + 1, dtype=np.float32)
    columns = np.arange(left, left + 2 * reach + 1, dtype=np.float32)
    dy = (rows + 0.5 - figure.y)[:, None]
    dx = (columns + 0.5 - figure.x)[None, :]
    cos, sin = math.cos(figure.angle), math.sin(figure.angle)
    u = dx * cos + dy * sin
    v = (dy * cos - dx * sin) / figure.squeeze
    radius = figure.radius
    distance = SHAPES[figure.shape](u / radius, v / radius) * radius
    coverage = np.clip(distance + 0.5, 0, 1)
    inside = (
        slice(max(0, -top), max(0, height - top)),
        slice(max(0, -left), max(0, width - left)),
    )
    return Raster(
        rows=slice(max(0, top), max(0, min(height, top + len(rows)))),
        columns=slice(max(0, left), max(0, min(width, left + len(columns)))),
        coverage=coverage[inside],
        distance=distance[inside],
        u=u[inside],
        v=v[inside],
        whole_area=float(np.count_nonzero(coverage >= 0.5)),
    )


def paint(image: Floats, figure: Figure, raster: Raster, light: float) -> None:
    """Paint a figure and its soft shadow onto an image, in place.

    Args:
        image: (H, W, 3) float32 RGB.
        figure: what to paint.
        raster: what `rasterize` gave for it.
        light: direction that the light comes from, radians.
    """
    window = image[raster.rows, raster.columns]
    shadow = np.clip(raster.distance / 3 + 1.0, 0, 1)[..., None] * 0.35
    window *= 1 - shadow
    cos, sin = math.cos(light - figure.angle), math.sin(light - figure.angle)
    shade = 1 + 0.22 * (raster.u * cos + raster.v * sin) / figure.radius
    surface = _texture(figure, raster) * shade[..., None]
    coverage = raster.coverage[..., None]
    window += coverage * (surface - window)


def _texture(figure: Figure, raster: Raster) -> Floats:
    """Colour every pixel of the window: (h, w, 3) float32."""
    first, second = (np.array(color, dtype=np.float32) for color in figure.colors)
    mix = _mix(figure, raster)[..., None]
    return first + mix * (second - first)


def _mix(figure: Figure, raster: Raster) -> Floats:
    """Share of the second colour in every pixel of the window."""
    u, v = raster.u, raster.v
    if figure.texture == "shaded":
        return np.clip(0.5 + 0.5 * u / figure.radius, 0, 1)
    if figure.texture == "speckled":
        # Drawn for the window as clipped: the window is a function of the figure, so it repeats.
        noise = np.random.Generator(np.random.PCG64(figure.noise_seed)).random(u.shape)
        return (noise > 0.75).astype(np.float32) * 0.7
    turn = 2 * math.pi / figure.period
    if figure.texture == "striped":
        return np.clip(0.5 + 2.0 * np.sin(turn * u), 0, 1)
    if figure.texture == "checked":
        return np.clip(0.5 + 2.5 * np.sin(turn * u) * np.sin(turn * v), 0, 1)
    return np.zeros_like(u)
