"""Where everything lies in a store: keys, zarr metadata, and the order of the two.

All of it is a pure function of the manifest and the index. zarr's metadata is written here rather
than by zarr, so that its bytes do not depend on zarr's version and stores stay comparable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import canonical, checksums
from storage.checksums import CRC_BYTES
from storage.errors import FormatError
from storage.index import COLUMNS, Index
from storage.local import PARTIAL_SUFFIX
from storage.manifest import Manifest
from storage.report import written_again
from storage.schema import Array, ShardId

ROOT_KEY = "zarr.json"
DIGEST_KEY = "manifest.sha256"
INDEX = "index"
BUCKETS = "buckets"
COMMITS = "commits"
CLAIMS = "claims"
LOG = "log"

INDEX_CHUNK = 1 << 15
ZSTD_LEVEL = 1
MAX_METADATA_BYTES = 1 << 28

# What writers put under these folders; anything else there is not ours to remove.
OURS = re.compile(
    rf"{COMMITS}/[0-9x]+/[0-9]+\.json"
    rf"|{INDEX}/[a-z_]+/(c/[0-9]+|zarr\.json)"
    rf"|{BUCKETS}/[0-9x]+/([a-z0-9_]+/)?(c/[0-9]+(/0)*|zarr\.json)"
    rf"|({COMMITS}|{INDEX}|{BUCKETS})/.*{re.escape(PARTIAL_SUFFIX)}",
    re.ASCII,
)

# A writer's note, outside of every check.
NOTE = re.compile(rf"{LOG}/[A-Za-z0-9_-][A-Za-z0-9_.-]*\.json", re.ASCII)
MAX_NOTE_BYTES = 1 << 20

_CRC32C = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def commit_key(shard: ShardId) -> str:
    """Key of a shard's commit."""
    return f"{COMMITS}/{shard.bucket}/{shard.number:05d}.json"


def claim_folder(shard: ShardId) -> str:
    """Folder of the claims on a shard."""
    return f"{CLAIMS}/{shard.bucket}/{shard.number:05d}"


def object_key(shard: ShardId, array: Array) -> str:
    """Key of the zarr shard that holds one array of one of our shards."""
    return f"{BUCKETS}/{shard.bucket}/{array.name}/c/{shard.number}/0"


def object_keys(manifest: Manifest, shard: ShardId) -> list[str]:
    """Keys of a shard's objects, in the order of the arrays."""
    return [object_key(shard, one) for one in manifest.arrays[shard.bucket]]


def index_chunk_keys(column: str, records: int) -> list[str]:
    """Keys of the chunks of one index column."""
    return [f"{INDEX}/{column}/c/{number}" for number in range(-(-records // INDEX_CHUNK))]


def index_keys(records: int) -> list[str]:
    """Keys of the chunks of all index columns."""
    return [key for column in COLUMNS for key in index_chunk_keys(column, records)]


def root_json(manifest: Manifest) -> bytes:
    """The root's zarr.json."""
    return _group({"gid": manifest.to_json()})


def parse_root(raw: bytes, store: str) -> Manifest:
    """Read the manifest out of the root's zarr.json.

    Raises:
        FormatError: not the root of a teacher cache.
        VersionError: of a newer format.
    """
    root = canonical.load(raw, f"{store}/{ROOT_KEY}")
    attributes = root.get("attributes") if isinstance(root, dict) else None
    if not isinstance(attributes, dict) or "gid" not in attributes:
        raise FormatError(f"{store}: not a teacher cache ({ROOT_KEY} has no attribute 'gid')")
    manifest = Manifest.from_json(attributes["gid"], store)
    if not manifest.slots:
        raise FormatError(f"{store}: the manifest is malformed (no slots)")
    expected = json.loads(root_json(manifest))
    found = canonical.differences(root, expected)
    if found:
        raise FormatError(
            f"{store}/{ROOT_KEY}: {found[0]}, as the format has it; {written_again('the file')}"
        )
    return manifest


def derived_objects(manifest: Manifest, index: Index) -> Iterator[tuple[str, bytes]]:
    """Yield (key, bytes) of the index and of every zarr.json but the root's."""
    for column, dtype in COLUMNS.items():
        chunks = index_chunks(getattr(index, column), dtype)
        yield from zip(index_chunk_keys(column, len(index)), chunks, strict=True)
    yield from zarr_json_objects(manifest, index.num_slots(), len(index))


def zarr_json_objects(
    manifest: Manifest, slots: Mapping[str, int], records: int
) -> Iterator[tuple[str, bytes]]:
    """Yield (key, bytes) of every zarr.json but the root's.

    Args:
        manifest: buckets and arrays.
        slots: bucket name to the length of its arrays.
        records: length of the index.
    """
    yield f"{INDEX}/{ROOT_KEY}", _group({"meaning": "one entry per record, in plan order"})
    for column, dtype in COLUMNS.items():
        yield f"{INDEX}/{column}/{ROOT_KEY}", _index_array_json(dtype, records)
    yield f"{BUCKETS}/{ROOT_KEY}", _group({"meaning": "one group per padded size"})
    for name, geometry in manifest.geometries.items():
        attributes = {"geometry": geometry.to_json(), "level_offsets": geometry.level_offsets}
        yield f"{BUCKETS}/{name}/{ROOT_KEY}", _group(attributes)
        for array in manifest.arrays[name]:
            text = array_json(array, slots[name], manifest.shard_records)
            yield f"{BUCKETS}/{name}/{array.name}/{ROOT_KEY}", text


def seal(manifest: Manifest, index: Index) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest as it will be stored, and every object that it vouches for."""
    objects = dict(derived_objects(manifest, index))
    sealed = manifest.sealed(
        views=index.num_views,
        records=len(index),
        index_sha256=index.digest(),
        slots=index.num_slots(),
        digests={key: checksums.sha256(data) for key, data in objects.items()},
    )
    return sealed, objects


def array_json(array: Array, slots: int, shard_records: int) -> bytes:
    """zarr.json of one array of a bucket: chunk = 1 record, zarr shard = 1 of our shards."""
    inner: list[dict[str, Any]] = [_bytes_codec("uint8")]
    if array.compression == "zstd":
        inner.append({"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}})
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [1, array.num_bytes],
            "codecs": [*inner, _CRC32C],
            "index_codecs": [_LITTLE, _CRC32C],
            "index_location": "end",
        },
    }
    shape, chunk = [slots, array.num_bytes], [shard_records, array.num_bytes]
    return _array("uint8", shape, chunk, [sharding], {"fields": array.to_json()["fields"]})


def index_chunks(column: NDArray[Any], dtype: str) -> Iterator[bytes]:
    """Encode one index column as zarr chunks, the last one filled up with zeros."""
    stored = np.dtype(dtype).newbyteorder("<")
    for start in range(0, len(column), INDEX_CHUNK):
        chunk = np.zeros(INDEX_CHUNK, dtype=stored)
        part = column[start : start + INDEX_CHUNK]
        chunk[: len(part)] = part
        data = chunk.tobytes()
        yield data + checksums.crc32c(data).to_bytes(CRC_BYTES, "little")


def parse_index_chunk(raw: bytes | None, dtype: str, key: str) -> NDArray[Any]:
    """Decode one chunk of an index column.

    Raises:
        FormatError: absent, of the wrong size, or its CRC32C does not match.
    """
    stored = np.dtype(dtype).newbyteorder("<")
    if raw is None:
        raise FormatError(f"{key}: absent")
    if len(raw) != INDEX_CHUNK * stored.itemsize + CRC_BYTES:
        raise FormatError(f"{key}: {len(raw)} bytes, which is not one chunk of {dtype}")
    data = memoryview(raw)[:-CRC_BYTES]
    if checksums.crc32c(data) != int.from_bytes(raw[-CRC_BYTES:], "little"):
        raise FormatError(f"{key}: damaged (its CRC32C does not match)")
    return np.frombuffer(data, dtype=stored).astype(dtype, copy=False)


def _index_array_json(dtype: str, records: int) -> bytes:
    codecs = [_bytes_codec(dtype), _CRC32C]
    return _array(dtype, [records], [INDEX_CHUNK], codecs, {})


def _bytes_codec(dtype: str) -> dict[str, Any]:
    return _LITTLE if np.dtype(dtype).itemsize > 1 else {"name": "bytes"}


def _array(
    dtype: str, shape: list[int], chunk: list[int], codecs: list[Any], attributes: Any
) -> bytes:
    return _text(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": False if dtype == "bool" else 0,
            "codecs": codecs,
            "attributes": attributes,
        }
    )


def _group(attributes: Any) -> bytes:
    return _text({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _text(value: Any) -> bytes:
    # Indented, unlike commits: people open these.
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")
