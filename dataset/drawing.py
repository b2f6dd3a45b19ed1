"""Pictures with boxes: panels beside each other, labels that fit, and a legend of the kinds."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.whole import replaced

# The palette of Okabe and Ito, whose colours colour-blind people tell apart.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"

_DPI = 100
# Pixels of a panel's longer side: small views are enlarged, large ones reduced.
_SIDES = (260, 640)
# Pixels that panels share, as long as none gets smaller than that.
_WIDTH = 1920
# Pixels of a letter's height, at these sides.
_LETTERS = (11, 14)
_GAP = 8
# Pixels of a column of the legend.
_LEGEND_COLUMN = 150


@dataclass(frozen=True, kw_only=True)
class BoxGroup:
    """Boxes of one kind in a panel.

    Attributes:
        kind: what they are, for the legend.
        boxes: (n, 4) XYXY_ABS, pixels of the panel's picture, on the host.
        labels: a text for each.
        colour: one of the palette.
        style: of the lines, a word of matplotlib.
    """

    kind: str
    boxes: Any
    labels: Sequence[str]
    colour: str
    style: str = "solid"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture: (H, W, 3) uint8 RGB, the boxes on it, and what is written above it."""

    title: str
    pixels: np.ndarray
    groups: Sequence[BoxGroup]


def draw_panels(path: str | os.PathLike[str], panels: Sequence[Panel], *, columns: int) -> None:
    """Draw panels row by row into one PNG; its folder is made.

    A legend below names the kinds, where there are several.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = np.max([one.pixels.shape[:2] for one in panels], axis=0)
    side = float(np.clip(min(max(height, width, 480), _WIDTH / columns), *_SIDES))
    height, width = (np.array([height, width]) * side / max(height, width)).round()
    letter = float(np.interp(side, _SIDES, _LETTERS))
    kinds = {group.kind: group for one in panels for group in one.groups}
    head = letter * 1.6 * max(one.title.count("\n") + 1 for one in panels)
    whole = columns * (width + _GAP) + _GAP
    lines = math.ceil(len(kinds) * _LEGEND_COLUMN / whole) if len(kinds) > 1 else 0
    foot = lines * letter * 1.9 + _GAP
    tall = math.ceil(len(panels) / columns) * (height + head + _GAP) + foot

    figure = Figure(figsize=(whole / _DPI, tall / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        left = _GAP + column * (width + _GAP)
        bottom = tall - (row + 1) * (height + head + _GAP)
        place = (left / whole, bottom / tall, width / whole, height / tall)
        _draw_panel(figure.add_axes(place), panel, letter)
    if lines:
        figure.legend(
            handles=[_sample(group) for group in kinds.values()], loc="lower center",
            ncols=math.ceil(len(kinds) / lines), fontsize=_points(letter), frameon=False,
        )  # fmt: skip
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial:
        # Without a format, a name without an ending, or that of a folder, would get one.
        figure.savefig(partial, format=path.suffix[1:] or "png")


def _points(pixels: float) -> float:
    return pixels * 72 / _DPI


def _sample(group: BoxGroup) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=group.colour, edgecolor=BLACK, linewidth=0.5, label=group.kind)


def _draw_panel(axes: Any, panel: Panel, letter: float) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    height, width = panel.pixels.shape[:2]
    # Boxes lie between pixels, whose centres are at halves.
    axes.imshow(panel.pixels, extent=(0, width, height, 0))
    axes.set_anchor("N")
    axes.set_axis_off()
    axes.set_title(panel.title, fontsize=_points(letter), pad=_points(letter / 3))
    line = letter / 6
    for group in panel.groups:
        # A rim, so that the line is seen on a ground of its own colour.
        rim = withStroke(linewidth=1.9 * line, foreground=_beside(group.colour), alpha=0.6)
        for x1, y1, x2, y2 in group.boxes.tolist():
            box = Rectangle(
                (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=group.colour, linewidth=line,
                linestyle=group.style, path_effects=[rim],
            )  # fmt: skip
            axes.add_patch(box)
    _write_labels(axes, panel.groups, letter)


def _write_labels(axes: Any, groups: Sequence[BoxGroup], letter: float) -> None:
    """Write each label at its box, inside the picture, where it hides least of those before it."""
    from matplotlib.transforms import IdentityTransform

    axes.apply_aspect()
    inside = axes.get_window_extent().extents  # x1, y1, x2, y2 in pixels, y upwards
    taken = np.empty((0, 4))
    pad = letter / 5
    for group in groups:
        for box, label in zip(group.boxes.tolist(), group.labels, strict=True):
            text = axes.text(
                0, 0, label, transform=IdentityTransform(), va="bottom", clip_on=True,
                parse_math=False, fontsize=_points(letter), color=_beside(group.colour),
                bbox={"facecolor": group.colour, "alpha": 0.8, "linewidth": 0, "pad": _points(pad)},
            )  # fmt: skip
            extent = text.get_window_extent()
            size = np.array([extent.width, extent.height]) + 2 * pad
            corners = axes.transData.transform(np.reshape(box, (2, 2)))
            places = np.array(list(_places(corners, size)))
            places = np.maximum(np.minimum(places, inside[2:] - size), inside[:2])
            places = np.hstack([places, places + size])
            best = places[np.argmin([_overlap(one, taken) for one in places])]
            text.set_position(best[:2] + pad)
            taken = np.vstack([taken, best])


def _places(corners: np.ndarray, size: np.ndarray) -> Iterator[tuple[float, float]]:
    """Lower left corners of a label of a size: above the box, then down its left and right side."""
    (left, top), (right, bottom) = corners
    width, height = size
    for y in (top, *np.arange(top - height, bottom - 1.5 * height, -height)):
        yield left, y
        yield right - width, y


def _overlap(place: np.ndarray, taken: np.ndarray) -> float:
    """The area that a place shares with those taken, (n, 4)."""
    shared = np.minimum(place[2:], taken[:, 2:]) - np.maximum(place[:2], taken[:, :2])
    return float(np.clip(shared, 0, None).prod(axis=1).sum())


def _beside(colour: str) -> str:
    """Black or white, whichever is seen on a colour."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 125 else "white"
