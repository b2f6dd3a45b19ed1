"""The index: one entry per record, in the order of the plan, and the shards that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage import checksums
from storage.schema import MAX_RECORDS, ShardId, check_bucket_name

COLUMNS: Mapping[str, str] = {
    "image_id": "int64",
    "view": "int32",
    "seed": "uint64",
    "height": "int32",
    "width": "int32",
    "bucket": "int32",
    "slot": "int64",
}


@dataclass(frozen=True, eq=False)
class Index:
    """One entry per record. Views come one after the other: the order is view-major.

    Attributes:
        image_id: (n,) int64. view: (n,) int32, not decreasing. seed: (n,) uint64 of the view.
        height, width: (n,) int32, pixels of the view.
        bucket: (n,) int32, number of the bucket. slot: (n,) int64, position in the bucket.
        bucket_names: name of every bucket, numbered by first appearance.

    Raises:
        ValueError: columns of different lengths or types, or a bucket number without a name.
    """

    image_id: NDArray[np.int64]
    view: NDArray[np.int32]
    seed: NDArray[np.uint64]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    bucket: NDArray[np.int32]
    slot: NDArray[np.int64]
    bucket_names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "bucket_names", tuple(self.bucket_names))
        for name, dtype in COLUMNS.items():
            column = np.asarray(getattr(self, name))
            if column.ndim != 1 or not np.can_cast(column.dtype, dtype, casting="same_kind"):
                raise ValueError(
                    f"index.{name}: got {column.dtype} of shape {column.shape},"
                    f" expected one dimension of {dtype}"
                )
            object.__setattr__(self, name, np.ascontiguousarray(column, dtype=dtype))
        if len({len(getattr(self, name)) for name in COLUMNS}) != 1:
            raise ValueError("index: the columns have different lengths")
        if not 0 < len(self) <= MAX_RECORDS:
            raise ValueError(f"index: {len(self)} records, expected 1 to {MAX_RECORDS}")
        for name in self.bucket_names:
            check_bucket_name(name)
        _check_first_appearance(self.bucket, len(self.bucket_names))
        if len(set(self.bucket_names)) != len(self.bucket_names):
            raise ValueError("index.bucket_names: a name occurs twice")

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def num_views(self) -> int:
        """Number of views, counted as the highest view + 1."""
        return int(self.view[-1]) + 1

    def prefix(self, records: int) -> Index:
        """Return the first `records` entries, and the buckets that occur in them."""
        columns = {name: getattr(self, name)[:records] for name in COLUMNS}
        used = int(columns["bucket"].max()) + 1
        return Index(**columns, bucket_names=self.bucket_names[:used])

    def digest(self) -> str:
        """SHA-256 of the bucket names and of all columns, little-endian, one after the other."""
        names = "\n".join(self.bucket_names).encode("ascii")
        columns = (
            np.ascontiguousarray(getattr(self, name), np.dtype(dtype).newbyteorder("<"))
            for name, dtype in COLUMNS.items()
        )
        return checksums.sha256(names, *(column.data.cast("B") for column in columns))

    def num_slots(self) -> dict[str, int]:
        """Bucket name to the length of its arrays: one more than its highest slot."""
        highest = np.full(len(self.bucket_names), -1, dtype=np.int64)
        np.maximum.at(highest, self.bucket, self.slot)
        return {name: int(last) + 1 for name, last in zip(self.bucket_names, highest, strict=True)}


@dataclass(frozen=True, eq=False)
class ShardTable:
    """The shards of an index: which records each one holds.

    Raises:
        ValueError: the index breaks a rule of the format (`_check_layout` lists them).
    """

    index: Index
    shard_records: int

    def __post_init__(self) -> None:
        _check_layout(self.index, self.shard_records)

    @cached_property
    def _by_shard(self) -> dict[ShardId, NDArray[np.int64]]:
        index = self.index
        number = index.slot // self.shard_records
        order = np.lexsort((index.slot, index.bucket))
        changes = (np.diff(index.bucket[order]) != 0) | (np.diff(number[order]) != 0)
        groups = np.split(order, np.flatnonzero(changes) + 1)
        groups.sort(key=lambda records: int(records[0]))
        return {
            ShardId(index.bucket_names[index.bucket[records[0]]], int(number[records[0]])): records
            for records in groups
        }

    def __len__(self) -> int:
        return len(self._by_shard)

    def __contains__(self, shard: object) -> bool:
        return shard in self._by_shard

    @property
    def shards(self) -> list[ShardId]:
        """All shards, in the order in which the plan reaches them (so view by view)."""
        return list(self._by_shard)

    def records_of(self, shard: ShardId) -> NDArray[np.int64]:
        """Return the record numbers of a shard, by slot; KeyError if the plan has no such shard."""
        return self._by_shard[shard]

    def shard_of(self, record: int) -> tuple[ShardId, int]:
        """Return the shard of a record, and the record's position in it."""
        index = self.index
        number, position = divmod(int(index.slot[record]), self.shard_records)
        return ShardId(index.bucket_names[index.bucket[record]], number), position


def build_index(
    *,
    image_id: ArrayLike,
    view: ArrayLike,
    seed: ArrayLike,
    height: ArrayLike,
    width: ArrayLike,
    bucket: Sequence[str] | NDArray[np.str_],
    shard_records: int,
) -> Index:
    """Number the buckets and assign the slots of a plan.

    Args:
        image_id, view, seed, height, width: (n,) columns of the index, view-major.
        bucket: (n,) name of every record's bucket, such as "0800x1344".
        shard_records: records of a full shard.

    Raises:
        ValueError: see `Index` and `ShardTable`.
    """
    names, first, codes = np.unique(np.asarray(bucket), return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = np.empty(len(names), dtype=np.int32)
    numbers[order] = np.arange(len(names), dtype=np.int32)
    number_of_record = numbers[codes]
    index = Index(
        image_id=np.asarray(image_id, dtype=np.int64),
        view=np.asarray(view, dtype=np.int32),
        seed=np.asarray(seed, dtype=np.uint64),
        height=np.asarray(height, dtype=np.int32),
        width=np.asarray(width, dtype=np.int32),
        bucket=number_of_record,
        slot=assign_slots(number_of_record, np.asarray(view), shard_records),
        bucket_names=tuple(str(names[position]) for position in order),
    )
    _check_layout(index, shard_records)
    return index


def assign_slots(
    bucket: NDArray[np.int32], view: NDArray[np.int32], shard_records: int
) -> NDArray[np.int64]:
    """Give every record its slot, so that no shard spans two views.

    The records of one view and bucket take consecutive slots in the order of the plan and begin at
    a shard's first slot; the unused slots before them stay empty. Adding a view therefore never
    moves a record.

    Args:
        bucket: (n,) bucket numbers.
        view: (n,) views, not decreasing.
        shard_records: records of a full shard.
    """
    order = np.lexsort((view, bucket))  # stable: records of a group keep the order of the plan
    sorted_bucket, sorted_view = bucket[order], view[order]
    new_bucket = np.diff(sorted_bucket, prepend=-1) != 0
    starts = np.flatnonzero(new_bucket | (np.diff(sorted_view, prepend=-1) != 0))
    counts = np.diff(starts, append=len(order))
    shards = -(-counts // shard_records)
    before = np.cumsum(shards) - shards  # shards of all groups before, other buckets included
    bucket_of_group = np.cumsum(new_bucket[starts]) - 1
    first_shard = before - before[new_bucket[starts]][bucket_of_group]
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    slots = np.empty(len(order), dtype=np.int64)
    slots[order] = np.repeat(first_shard, counts) * shard_records + rank
    return slots


def _check_first_appearance(bucket: NDArray[np.int32], num_buckets: int) -> None:
    if bucket.min() < 0 or bucket.max() >= num_buckets:
        raise ValueError(f"index.bucket: {num_buckets} names, but a number outside of them")
    used, first = np.unique(bucket, return_index=True)
    if len(used) != num_buckets or np.any(np.diff(first) < 0):
        raise ValueError(
            "index.bucket: buckets must be numbered by first appearance, so that adding a view"
            " never renumbers one (build_index does it)"
        )


def _check_layout(index: Index, shard_records: int) -> None:
    """Refuse an index that a store cannot hold.

    Views are counted from 0 and come one after the other; a view has each image once; a slot holds
    one record; a shard holds records of one view, in its first slots; shards have no gaps.
    """
    view = index.view
    if view[0] != 0 or np.any((np.diff(view) != 0) & (np.diff(view) != 1)):
        raise ValueError("index.view: views must come one after the other, counted from 0")
    order = np.lexsort((index.image_id, view))
    twice = (np.diff(index.image_id[order]) == 0) & (np.diff(view[order]) == 0)
    if twice.any():
        record = order[np.flatnonzero(twice)[0]]
        raise ValueError(f"index: image {index.image_id[record]} occurs twice in a view")
    if np.any((index.height < 1) | (index.width < 1)):
        raise ValueError("index: a view with no pixels (height or width below 1)")
    order = np.lexsort((index.slot, index.bucket))
    bucket, slot, view = index.bucket[order], index.slot[order], view[order]
    number, position = np.divmod(slot, shard_records)
    same_bucket = np.diff(bucket, prepend=-1) == 0
    same_shard = same_bucket & (np.diff(number, prepend=-1) == 0)
    expected = np.where(same_shard, np.roll(position, 1) + 1, 0)
    if np.any(position != expected):
        raise ValueError("index.slot: the records of a shard must fill its first slots, one each")
    if np.any(same_shard & (np.diff(view, prepend=-1) != 0)):
        raise ValueError("index.slot: a shard spans two views")
    expected = np.where(same_shard, number, np.where(same_bucket, np.roll(number, 1) + 1, 0))
    if np.any(number != expected):
        raise ValueError("index.slot: a bucket's shards must be numbered from 0 without gaps")
