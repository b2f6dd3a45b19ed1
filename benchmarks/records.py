"""What a RetinaNet of 80 classes with 9 anchors per position and 256 channels has in a record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage import Geometry, Signal

if TYPE_CHECKING:
    from storage import RecordCodec

NUM_CLASSES = 80
NUM_DETECTIONS = 100
LEVELS = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
SIGNALS = (
    Signal("features", "maps", {"channels": 256}),
    Signal("scores", "scores", {"anchors": 9, "classes": NUM_CLASSES}),
    Signal("deltas", "deltas", {"anchors": 9}),
)


def geometry_of(height: int, width: int) -> Geometry:
    """Its grids at a padded size."""
    sizes = tuple((-(-height // step), -(-width // step)) for step in LEVELS.values())
    return Geometry(height, width, sizes)


def codec_of(preset: str, **options: object) -> RecordCodec:
    """Its codec under a preset (imports PyTorch)."""
    from storage import RecordCodec, get_preset

    return RecordCodec.of_preset(get_preset(preset, **options), SIGNALS, NUM_DETECTIONS)
