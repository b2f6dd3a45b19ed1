"""The value types of the format: geometry, fields and shards, and the limits of each.

Shape letters: A anchors a position, C channels, D detections kept an image, K classes, L levels,
S positions of all levels, R anchors an image (R = S * A).

Nothing here needs PyTorch. All sizes that come from a file are bounded here, so that reading a
forged manifest cannot ask for absurd amounts of memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from storage import canonical

FORMAT_NAME = "gid-teacher-cache"
FORMAT_VERSION = 1

MAX_SIDE = 65_535
MAX_COUNT = 1 << 20
MAX_RECORD_BYTES = 1 << 31
MAX_SHARD_RECORDS = 1 << 16
MAX_SLOTS = 1 << 32
MAX_RECORDS = 1 << 27

DTYPES = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64",
)  # fmt: skip
COMPRESSIONS = (None, "zstd")

_BUCKET_NAME = re.compile(r"[0-9]{4,5}x[0-9]{4,5}", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*", re.ASCII)
_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


def check_bucket_name(name: str) -> str:
    """Return `name` if it can name a bucket (`0800x1344`), else raise ValueError."""
    if not isinstance(name, str) or not _BUCKET_NAME.fullmatch(name):
        raise ValueError(f"bucket name: got {name!r}, expected <height>x<width> as in 0800x1344")
    return name


def check_key(key: str) -> str:
    """Return `key` if it stays inside a store's prefix, else raise ValueError."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"key {key!r} does not name an object of a store")
    return key


def check_count(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` if it is an int in [low, high], else raise ValueError naming it."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name}: got {value!r}, expected an integer from {low} to {high}")
    return value


@dataclass(frozen=True, order=True)
class ShardId:
    """A shard: `number` counts from 0 within its bucket."""

    bucket: str
    number: int

    def __str__(self) -> str:
        return f"{self.bucket}/{self.number:05d}"


@dataclass(frozen=True)
class Geometry:
    """The shapes of all records of one padded size.

    Attributes:
        height, width: padded size in pixels.
        level_sizes: (H_l, W_l) of every pyramid level, finest first.
        channels: C. num_classes: K. num_anchors: A, anchors a position.
    """

    height: int
    width: int
    level_sizes: tuple[tuple[int, int], ...]
    channels: int
    num_classes: int
    num_anchors: int

    def __post_init__(self) -> None:
        levels = tuple((height, width) for height, width in self.level_sizes)
        object.__setattr__(self, "level_sizes", levels)
        check_count("geometry.height", self.height, 1, MAX_SIDE)
        check_count("geometry.width", self.width, 1, MAX_SIDE)
        check_count("geometry.channels", self.channels, 1, MAX_COUNT)
        check_count("geometry.num_classes", self.num_classes, 1, MAX_COUNT)
        check_count("geometry.num_anchors", self.num_anchors, 1, MAX_COUNT)
        check_count("geometry.level_sizes: number of levels", len(levels), 1, 64)
        for height, width in levels:
            check_count("geometry.level_sizes", height, 1, MAX_SIDE)
            check_count("geometry.level_sizes", width, 1, MAX_SIDE)

    @property
    def name(self) -> str:
        """Name of the bucket, such as `0800x1344`."""
        return f"{self.height:04d}x{self.width:04d}"

    @property
    def level_offsets(self) -> tuple[int, ...]:
        """L + 1 positions: level l occupies [offsets[l], offsets[l + 1]) of S."""
        offsets = [0]
        for height, width in self.level_sizes:
            offsets.append(offsets[-1] + height * width)
        return tuple(offsets)

    @property
    def num_levels(self) -> int:
        """L, the number of pyramid levels."""
        return len(self.level_sizes)

    @property
    def num_positions(self) -> int:
        """S, the positions of all levels."""
        return self.level_offsets[-1]

    @property
    def num_boxes(self) -> int:
        """R, the anchors of an image."""
        return self.num_positions * self.num_anchors

    def to_json(self) -> dict[str, Any]:
        """Return the geometry as JSON."""
        return {
            "height": self.height,
            "width": self.width,
            "level_sizes": [list(size) for size in self.level_sizes],
            "channels": self.channels,
            "num_classes": self.num_classes,
            "num_anchors": self.num_anchors,
        }

    @classmethod
    def from_json(cls, value: Any) -> Geometry:
        """Read what `to_json` wrote; ValueError, TypeError or KeyError if it is something else."""
        sizes = tuple((height, width) for height, width in value["level_sizes"])
        return cls(
            value["height"], value["width"], sizes,
            value["channels"], value["num_classes"], value["num_anchors"],
        )  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One array of a record.

    Attributes:
        name: lower-case name, also that of the zarr array.
        shape: shape of one record, without the leading record dimension; () for a number.
        dtype: numpy name of the element type.
        compression: None or "zstd", applied to each record's chunk.
        attributes: JSON that tells any zarr reader what the codes mean.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    compression: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "attributes", canonical.normalise(dict(self.attributes)))
        if not isinstance(self.name, str) or not _FIELD_NAME.fullmatch(self.name):
            raise ValueError(f"field name: got {self.name!r}, expected letters a-z, 0-9 and _")
        if self.dtype not in DTYPES:
            raise ValueError(f"field {self.name}: dtype {self.dtype!r}, expected one of {DTYPES}")
        if self.compression not in COMPRESSIONS:
            raise ValueError(
                f"field {self.name}: compression {self.compression!r},"
                f" expected one of {COMPRESSIONS}"
            )
        check_count(f"field {self.name}: dimensions", len(self.shape), 0, 8)
        for size in self.shape:
            check_count(f"field {self.name}: shape", size, 1, MAX_RECORD_BYTES)
        check_count(f"field {self.name}: bytes", self.num_bytes, 1, MAX_RECORD_BYTES)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of one record, before compression."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        """Return the field as JSON."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "compression": self.compression,
            "attributes": dict(self.attributes),
        }

    @classmethod
    def from_json(cls, value: Any) -> Field:
        """Read what `to_json` wrote; ValueError, TypeError or KeyError if it is something else."""
        return cls(
            value["name"], tuple(value["shape"]), value["dtype"],
            value["compression"], value["attributes"],
        )  # fmt: skip


PIXELS_CRC, PIXELS_SAMPLE = "pixels_crc32c", "pixels_sample"
# For checks and evaluation: a training step has no use for them, and so does not read them.
NOT_FOR_TRAINING = frozenset({"detections", PIXELS_SAMPLE})
# Points of a view a side, in its sample.
SAMPLE_SIDE = 16
PIXEL_FIELDS = (
    Field(
        PIXELS_CRC, (), "uint32",
        attributes={"meaning": "CRC32C of the view, uint8 RGB HWC, after EXIF rotation"},
    ),
    Field(
        PIXELS_SAMPLE, (SAMPLE_SIDE, SAMPLE_SIDE, 3), "uint8",
        attributes={
            "meaning": "pixels of the view, RGB, in evenly spread rows and columns",
            "rows": f"(2i + 1) * height // {2 * SAMPLE_SIDE}, columns likewise",
        },
    ),
)  # fmt: skip


def common_fields(num_detections: int) -> tuple[Field, ...]:
    """Return the fields that every record has, whatever its preset."""
    return (
        Field(
            "detections", (num_detections, 6), "float32",
            attributes={
                "meaning": "the teacher's final boxes, best first",
                "columns": ["x1", "y1", "x2", "y2", "score", "class"],
                "boxes": "XYXY_ABS, pixels of the view",
                "unused rows": "score -1",
            },
        ),
        *PIXEL_FIELDS,
    )  # fmt: skip
