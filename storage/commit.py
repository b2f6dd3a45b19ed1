"""The commit of a shard: what makes it exist, and what proves each of its bytes.

A commit file reads `{"commit":BODY,"sha256":"DIGEST"}` and a newline, where BODY is canonical JSON
and DIGEST its SHA-256. It holds no time, host, rank or path, so equal shards have equal commits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import canonical, checksums
from storage.checksums import CRC_BYTES
from storage.errors import FormatError, VersionError
from storage.index import Index, ShardTable
from storage.layout import COMMITS, commit_key, object_key, object_keys
from storage.location import Location
from storage.manifest import Manifest, check_version
from storage.report import remedy
from storage.schema import FORMAT_NAME, FORMAT_VERSION, Array, ShardId, check_count

_HEAD, _MIDDLE, _TAIL = b'{"commit":', b',"sha256":"', b'"}\n'
_DIGEST = re.compile(r"[0-9a-f]{32}", re.ASCII)
_FRAME = len(_MIDDLE) + 64 + len(_TAIL)

# zstd never expands a chunk by more than this (its own bound, rounded up).
_ZSTD_SLACK = 1 << 10
# Nor does it pack more than 128 KiB into 4 bytes: a short chunk cannot ask for a lot of memory.
_ZSTD_MOST_SAVED = 16

MAX_OBJECT_BYTES = 1 << 48


@dataclass(frozen=True, eq=False)
class StoredObject:
    """One object of a shard.

    Attributes:
        size: bytes. xxh3_128: digest of all of them, 32 hex digits.
        chunks: (n, 3) int64 offset, length in bytes, and CRC32C of each record's chunk. The CRC
            covers the chunk without its last four bytes, which hold the same number.
    """

    size: int
    xxh3_128: str
    chunks: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Commit:
    """What a commit file says. `objects` maps array names to their objects."""

    cache_id: str
    shard: ShardId
    records: Mapping[str, Any]
    objects: Mapping[str, StoredObject]


def record_entries(index: Index, records: NDArray[np.int64]) -> dict[str, Any]:
    """Return what a commit says about its records, by slot: JSON with lists of equal length."""
    return {
        "slot": index.slot[records].tolist(),
        "image_id": index.image_id[records].tolist(),
        "view": index.view[records].tolist(),
        # Hexadecimal text: a 64-bit number does not survive every JSON reader.
        "seed": [f"{seed:016x}" for seed in index.seed[records].tolist()],
    }


def dump(commit: Commit, arrays: Sequence[Array]) -> bytes:
    """Encode a commit file."""
    objects = {
        object_key(commit.shard, array): {
            "size": commit.objects[array.name].size,
            "xxh3_128": commit.objects[array.name].xxh3_128,
            "chunks": commit.objects[array.name].chunks.tolist(),
        }
        for array in arrays
    }
    body = canonical.dump(
        {
            "format": {"name": FORMAT_NAME, "version": FORMAT_VERSION},
            "cache_id": commit.cache_id,
            "bucket": commit.shard.bucket,
            "number": commit.shard.number,
            "records": dict(commit.records),
            "objects": objects,
        }
    )
    return _HEAD + body + _MIDDLE + checksums.sha256(body).encode("ascii") + _TAIL


def parse(raw: bytes, shard: ShardId, manifest: Manifest, store: str) -> Commit:
    """Read the commit file of a shard, trusting nothing in it.

    Raises:
        FormatError: damaged, of another cache or shard, or its numbers contradict each other.
        VersionError: of a newer format.
    """
    what = f"{store}: shard {shard}: {commit_key(shard)}"
    try:
        body = unframe(raw, what)
        check_version(body, what)
        _check_place(body, shard, manifest)
        return _parse_body(body, shard, manifest)
    except VersionError:
        raise
    except (AttributeError, FormatError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = str(error).removeprefix(f"{what}: ")
        if not isinstance(error, FormatError):
            reason = f"malformed ({reason})"
        raise FormatError(f"{what}: {reason}; {remedy(store)}") from error


def missing(location: Location, table: ShardTable) -> list[ShardId]:
    """Return the shards that are not committed, in plan order. One listing."""
    committed = location.sizes(COMMITS)
    return [shard for shard in table.shards if commit_key(shard) not in committed]


def without_excluded(
    index: Index, records: NDArray[np.int64], excluded: Sequence[int]
) -> NDArray[np.int64]:
    """Return the records of a shard that are not of an excluded image."""
    return records[~np.isin(index.image_id[records], excluded)] if excluded else records


def records_in(
    commit: Commit, index: Index, records: NDArray[np.int64], excluded: Sequence[int]
) -> NDArray[np.int64]:
    """Return the records that a commit must have: all that are not excluded, and those it states.

    A shard may have been committed before an image of it was excluded.

    Args:
        commit: what `parse` gave.
        index, records: the plan, and which records of it the shard holds.
        excluded: ids of the images that the store may lack.
    """
    if not excluded or len(commit.records["slot"]) == len(records):
        return records
    stated = set(commit.records["slot"])
    kept = np.array([slot in stated for slot in index.slot[records].tolist()], dtype=bool)
    return records[kept | ~np.isin(index.image_id[records], excluded)]


def check_records(commit: Commit, index: Index, records: NDArray[np.int64], store: str) -> None:
    """Refuse a commit whose records are not those of the plan.

    Args:
        commit: what `parse` gave.
        index, records: the plan, and the records of it that the commit must have.
        store: its name.

    Raises:
        FormatError: names the first list that differs.
    """
    expected = record_entries(index, records)
    for name in sorted(expected.keys() | commit.records.keys()):
        if commit.records.get(name) != expected.get(name):
            raise FormatError(
                f"{store}: shard {commit.shard}: {commit_key(commit.shard)}: the records' {name} is"
                f" not that of the index; {remedy(store)}"
            )


def check_exact(
    raw: bytes,
    commit: Commit,
    index: Index,
    records: NDArray[np.int64],
    arrays: Sequence[Array],
    store: str,
) -> None:
    """Refuse a commit file that is not, byte for byte, the one of its records and objects.

    Args:
        raw: the file. commit: what `parse` made of it.
        index, records: the plan, and the records of it that the commit must have.
        arrays: of the bucket.
        store: its name.

    Raises:
        FormatError: names the first member that the format does not have, or not so.
    """
    wanted = record_entries(index, records)
    expected = dump(Commit(commit.cache_id, commit.shard, wanted, commit.objects), arrays)
    if raw == expected:
        return
    check_records(commit, index, records, store)
    key = commit_key(commit.shard)
    bodies = (unframe(one, key) for one in (raw, expected))
    found = next(iter(canonical.differences(*bodies)), "not written as canonical JSON")
    raise FormatError(f"{store}: shard {commit.shard}: {key}: {found}; {remedy(store)}")


def unframe(raw: bytes, what: str) -> dict[str, Any]:
    """Check the frame and digest of a commit file and return its body.

    Raises:
        FormatError: any byte is not what was written.
    """
    body = raw[len(_HEAD) : -_FRAME]
    frame = _HEAD + body + _MIDDLE + checksums.sha256(body).encode("ascii") + _TAIL
    if raw != frame:
        raise FormatError(f"{what}: damaged (its SHA-256 does not match)")
    value = canonical.load(body, what)
    if not isinstance(value, dict):
        raise FormatError(f"{what}: not a commit")
    return value


def _check_place(body: dict[str, Any], shard: ShardId, manifest: Manifest) -> None:
    if body.get("cache_id") != manifest.cache_id:
        raise FormatError(f"belongs to another cache (id {body.get('cache_id')!r:.70})")
    stated = (body.get("bucket"), body.get("number"))
    if stated != (shard.bucket, shard.number):
        raise FormatError(f"is the commit of shard {stated[0]!r:.40} {stated[1]!r:.40}")


def _parse_body(body: dict[str, Any], shard: ShardId, manifest: Manifest) -> Commit:
    arrays = manifest.arrays[shard.bucket]
    slots = body["records"]["slot"]
    if not isinstance(slots, list) or any(type(slot) is not int for slot in slots):
        raise ValueError("the records' slot is not a list of integers")
    count = len(slots)
    if count > manifest.shard_records:
        raise ValueError(f"{count} records in a shard of {manifest.shard_records}")
    keys = object_keys(manifest, shard)
    if body["objects"].keys() != set(keys):
        raise ValueError("its objects are not those of the shard's arrays")
    stored = [body["objects"][key] for key in keys]
    tables = _chunk_tables(stored, arrays, count)
    objects = {
        array.name: StoredObject(_size(value, array), _digest(value, array), table)
        for array, value, table in zip(arrays, stored, tables, strict=True)
    }
    return Commit(body["cache_id"], shard, body["records"], objects)


def _size(value: dict[str, Any], array: Array) -> int:
    return check_count(f"{array.name}: size", value["size"], 1, MAX_OBJECT_BYTES)


def _digest(value: dict[str, Any], array: Array) -> str:
    digest = value["xxh3_128"]
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"{array.name}: no XXH3-128 digest")
    return digest


def _chunk_tables(
    stored: Sequence[dict[str, Any]], arrays: Sequence[Array], count: int
) -> NDArray[np.int64]:
    """Return (arrays, count, 3) offsets, lengths and CRC32Cs, each of which can be true.

    All arrays at once: a store of many small shards is opened and checked in half the time.
    """
    chunks = np.array([value["chunks"] for value in stored], dtype=None if count else np.int64)
    chunks = chunks if count else chunks.reshape(len(arrays), 0, 3)
    if chunks.dtype != np.int64 or chunks.shape != (len(arrays), count, 3):
        raise ValueError(f"a chunk table is not {count} times three integers")
    offset, length, crc = np.moveaxis(chunks, 2, 0)
    size = np.array([[_size(*one)] for one in zip(stored, arrays, strict=True)])
    low, high = (np.array(limit)[:, None] for limit in zip(*map(_lengths, arrays), strict=True))
    wrong = (length < low) | (length > high) | (offset < 0) | (offset > size - length)
    wrong |= (crc < 0) | (crc > 0xFFFFFFFF)
    if wrong.any():
        name = arrays[int(wrong.any(axis=1).argmax())].name
        raise ValueError(f"{name}: a chunk's length, place or CRC32C cannot be true")
    return chunks


def _lengths(array: Array) -> tuple[int, int]:
    """Return the least and the most bytes that a chunk of an array can have."""
    if array.compression:
        least = 1 + (array.num_bytes >> _ZSTD_MOST_SAVED)
        most = array.num_bytes + array.num_bytes // 128 + _ZSTD_SLACK
        return CRC_BYTES + least, CRC_BYTES + most
    return CRC_BYTES + array.num_bytes, CRC_BYTES + array.num_bytes
