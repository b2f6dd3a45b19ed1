"""The value types of the format: geometry, fields, arrays and shards, and the limits of each.

Shape letters: D detections kept of an image, L levels, S positions of all levels, n records,
B bytes of a record in one array.

Nothing here needs PyTorch. All sizes that come from a file are bounded here, so that reading a
forged manifest cannot ask for absurd amounts of memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import canonical

FORMAT_NAME = "gid-teacher-cache"
FORMAT_VERSION = 2

MAX_SIDE = 65_535
MAX_LEVELS = 64
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

_ZSTD_BLOCK = 1 << 17
_LEAST_FOR_A_BLOCK = 1 << 14

_BUCKET_NAME = re.compile(r"[0-9]{4,5}x[0-9]{4,5}", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*", re.ASCII)
_ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}(\.[a-z][a-z0-9_]{0,63})?", re.ASCII)


def check_bucket_name(name: str) -> str:
    """Return `name` if it can name a bucket (`0800x1344`), else raise ValueError."""
    if not isinstance(name, str) or not _BUCKET_NAME.fullmatch(name):
        raise ValueError(f"bucket name: got {name!r}, expected <height>x<width> as in 0800x1344")
    return name


def check_name(what: str, name: str) -> str:
    """Return `name` if it can name an array or a signal, else raise ValueError."""
    if not isinstance(name, str) or not _ARRAY_NAME.fullmatch(name):
        raise ValueError(f"{what} name: got {name!r}, expected letters a-z, 0-9 and _")
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
    """The grids of all records of one padded size.

    Attributes:
        height, width: padded size in pixels.
        level_sizes: (H_l, W_l) of every pyramid level that is stored, finest first.
    """

    height: int
    width: int
    level_sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        levels = tuple((height, width) for height, width in self.level_sizes)
        object.__setattr__(self, "level_sizes", levels)
        check_count("geometry.height", self.height, 1, MAX_SIDE)
        check_count("geometry.width", self.width, 1, MAX_SIDE)
        check_count("geometry.level_sizes: number of levels", len(levels), 1, MAX_LEVELS)
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
        return tuple(accumulate((h * w for h, w in self.level_sizes), initial=0))

    @property
    def num_levels(self) -> int:
        """L, the number of pyramid levels."""
        return len(self.level_sizes)

    @property
    def num_positions(self) -> int:
        """S, the positions of all levels."""
        return self.level_offsets[-1]

    def to_json(self) -> dict[str, Any]:
        """Return the geometry as JSON."""
        return {
            "height": self.height,
            "width": self.width,
            "level_sizes": [list(size) for size in self.level_sizes],
        }

    @classmethod
    def from_json(cls, value: Any) -> Geometry:
        """Read what `to_json` wrote; ValueError, TypeError or KeyError if it is something else."""
        sizes = tuple((height, width) for height, width in value["level_sizes"])
        return cls(value["height"], value["width"], sizes)


@dataclass(frozen=True)
class Field:
    """One typed part of a record.

    Attributes:
        name: such as `detections`; of a signal's, `<signal>.<part>`.
        shape: of one record; () for a number.
        dtype: numpy name of the element type.
        attributes: JSON that tells any zarr reader what the codes mean. `limits`, where it is
            there, says which values are ever written; see `storage.values`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "attributes", canonical.normalise(dict(self.attributes)))
        if not isinstance(self.name, str) or not _FIELD_NAME.fullmatch(self.name):
            raise ValueError(
                f"field name: got {self.name!r}, expected letters a-z, 0-9 and _, or two such names"
                " joined by a dot"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"field {self.name}: dtype {self.dtype!r}, expected one of {DTYPES}")
        check_count(f"field {self.name}: dimensions", len(self.shape), 0, 8)
        for size in self.shape:
            check_count(f"field {self.name}: shape", size, 1, MAX_RECORD_BYTES)
        check_count(f"field {self.name}: bytes", self.num_bytes, 1, MAX_RECORD_BYTES)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of one record, before compression."""
        return math.prod(self.shape) * self.stored_dtype.itemsize

    @cached_property
    def stored_dtype(self) -> np.dtype[Any]:
        """The element type as it lies in a store: little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    def to_json(self) -> dict[str, Any]:
        """Return the field as JSON."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "attributes": dict(self.attributes),
        }

    @classmethod
    def from_json(cls, value: Any) -> Field:
        """Read what `to_json` wrote; ValueError, TypeError or KeyError if it is something else."""
        return cls(value["name"], tuple(value["shape"]), value["dtype"], value["attributes"])


@dataclass(frozen=True)
class Array:
    """Fields that are stored together: for each record one run of bytes, read in one request.

    A field begins at a multiple of its element size; the bytes skipped for that are zeros. Under
    Zstandard, which codes 128 KiB at a time with one table, a field that is not small begins with a
    block of its own: its neighbours have other frequencies.

    Attributes:
        name: lower-case name, also that of the zarr array.
        fields: back to back, in this order.
        compression: None or "zstd", applied to each record's bytes.
    """

    name: str
    fields: tuple[Field, ...]
    compression: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        check_name("array", self.name)
        if self.compression not in COMPRESSIONS:
            raise ValueError(
                f"array {self.name}: compression {self.compression!r},"
                f" expected one of {COMPRESSIONS}"
            )
        if not self.fields:
            raise ValueError(f"array {self.name}: no fields")
        check_count(f"array {self.name}: bytes", self.num_bytes, 1, MAX_RECORD_BYTES)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each field begins in a record's bytes."""
        return tuple(start for start, _ in self._places)

    @cached_property
    def num_bytes(self) -> int:
        """B, bytes of one record before compression."""
        return self._places[-1][1]

    @cached_property
    def _places(self) -> tuple[tuple[int, int], ...]:
        places, end = [], 0
        for one in self.fields:
            step = one.stored_dtype.itemsize
            if self.compression == "zstd" and one.num_bytes >= _LEAST_FOR_A_BLOCK:
                step = _ZSTD_BLOCK
            start = -(-end // step) * step
            end = start + one.num_bytes
            places.append((start, end))
        return tuple(places)

    def split(self, data: NDArray[np.uint8]) -> Iterator[tuple[Field, NDArray[Any]]]:
        """Yield each field with its part of (..., B) bytes, (..., *field.shape), a view of them."""
        for one, (start, end) in zip(self.fields, self._places, strict=True):
            part = data[..., start:end].view(one.stored_dtype)
            yield one, part.reshape((*data.shape[:-1], *one.shape))

    def join(self, values: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
        """Bring the fields of n records, (n, *field.shape) each by name, into (n, B) bytes.

        Raises:
            ValueError: a field is absent, or has another shape or type.
        """
        absent = [one.name for one in self.fields if one.name not in values]
        if absent:
            raise ValueError(f"array {self.name}: fields {absent} are absent")
        count = len(values[self.fields[0].name])
        data = np.zeros((count, self.num_bytes), dtype=np.uint8)
        for one, part in self.split(data):
            value = values[one.name]
            if value.shape != (count, *one.shape) or value.dtype != np.dtype(one.dtype):
                raise ValueError(
                    f"array {self.name}: {one.name} is {value.dtype}{value.shape},"
                    f" expected {one.dtype}{(count, *one.shape)}"
                )
            part[...] = value
        return data

    def to_json(self) -> dict[str, Any]:
        """Return the array as JSON."""
        return {
            "name": self.name,
            "compression": self.compression,
            "fields": [
                {**one.to_json(), "offset": start}
                for one, start in zip(self.fields, self.offsets, strict=True)
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> Array:
        """Read what `to_json` wrote; ValueError, TypeError or KeyError if it is something else.

        Offsets follow from the fields, so whoever compares the JSON again finds a wrong one.
        """
        fields = tuple(Field.from_json(one) for one in value["fields"])
        return cls(value["name"], fields, value["compression"])


# The array of everything small: detections, pixels, and what codecs keep apart as small.
RECORD = "record"
DETECTIONS, PIXELS_CRC, PIXELS_SAMPLE = "detections", "pixels_crc32c", "pixels_sample"
# Names that no signal may have.
TAKEN = (RECORD, DETECTIONS, PIXELS_CRC, PIXELS_SAMPLE)
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
    """Return the fields that every record has, whatever its signals."""
    return (
        Field(
            DETECTIONS, (num_detections, 6), "float32",
            attributes={
                "meaning": "the teacher's final boxes, best first",
                "columns": ["x1", "y1", "x2", "y2", "score", "class"],
                "boxes": "XYXY_ABS, pixels of the view",
                "unused rows": "score -1",
            },
        ),
        *PIXEL_FIELDS,
    )  # fmt: skip
