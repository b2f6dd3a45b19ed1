"""Signals of every kind, values for them, and what it means to place a record on a grid."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage import Geometry, Signal
from storage.codecs.base import Codec, Codes

GEOMETRY = Geometry(64, 96, ((8, 12), (4, 6), (1, 1)))
# Odd sizes and lone positions: half-filled bytes, and levels without a spread.
GEOMETRIES = (GEOMETRY, Geometry(33, 57, ((5, 7), (3, 4), (1, 2))), Geometry(8, 8, ((1, 1),)))
COCO = Geometry(800, 1344, ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11)))

FEATURES = Signal("features", "maps", {"channels": 6})
SCORES = Signal("scores", "scores", {"anchors": 3, "classes": 7})
ONE_CLASS = Signal("scores", "scores", {"anchors": 3, "classes": 1})
DELTAS = Signal("deltas", "deltas", {"anchors": 3})
BOXES = Signal("proposals", "boxes", {"rows": 5})
ROWS = Signal("proposal_scores", "rows", {"rows": 5, "columns": 4})
SIGNALS = (FEATURES, SCORES, ONE_CLASS, DELTAS, BOXES, ROWS)
# Those of a RetinaNet for COCO.
COCO_SIGNALS = (
    Signal("features", "maps", {"channels": 256}),
    Signal("scores", "scores", {"anchors": 9, "classes": 80}),
    Signal("deltas", "deltas", {"anchors": 9}),
)


def make_values(
    signal: Signal, geometry: Geometry = GEOMETRY, count: int = 4, seed: int = 0
) -> Tensor:
    """Values like a trained teacher's: few anchors see something, the others are background."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(count, *signal.shape(geometry), generator=rng)
    if signal.kind == "maps":
        values *= torch.rand(count, values.shape[1], 1, generator=rng)
    if signal.kind == "scores":
        values -= 6
        values[:, ::41, -1] += 7
    return values


def expected(signal: Signal, values: Tensor) -> Tensor:
    """What decoding should come close to."""
    return values.float().sigmoid() if signal.kind == "scores" else values.float()


def record_of(codes: Codes, number: int) -> dict[str, Tensor]:
    """The codes of one record of several."""
    return {name: one[number] for name, one in codes.items()}


def round_trip(
    codec: Codec, signal: Signal, values: Tensor, geometry: Geometry = GEOMETRY
) -> Tensor:
    """Values encoded and decoded again."""
    return codec.decode(codec.encode(values, signal, geometry), signal, geometry)


def nearest(own: Geometry, grid: Geometry) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Of every position of a grid, the nearest of a record's own, and whether it is the same."""
    found, inside = [], []
    sizes = zip(own.level_sizes, grid.level_sizes, own.level_offsets, strict=False)
    for (h, w), (height, width), start in sizes:
        for y in range(height):
            for x in range(width):
                found.append(start + min(y, h - 1) * w + min(x, w - 1))
                inside.append(y < h and x < w)
    return np.array(found), np.array(inside)


def placed(value: Tensor, signal: Signal, own: Geometry, grid: Geometry) -> Tensor:
    """One record's decoded values on a grid: maps repeat their border, anchors are zero beyond."""
    position, inside = nearest(own, grid)
    if signal.kind == "maps":
        return value[:, position]
    if "anchors" not in signal.sizes:
        return value
    anchors = signal.sizes["anchors"]
    result = torch.zeros(len(position), anchors, value.shape[1])
    result[inside] = value.unflatten(0, (-1, anchors))[position[inside]]
    return result.flatten(0, 1)
