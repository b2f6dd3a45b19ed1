"""A store's metadata as a whole: read and checked against its digests, written in a safe order.

`manifest.sha256` holds the SHA-256 of the root's zarr.json, one line. While a store grows it holds
two, the old and the new one, so that the root can be replaced in one step: at every moment the
root that stands there is one of the two, and the index, which only ever grows at its end, serves
both. A crash in between leaves the two lines, and the next writer does it all again. Dropping views
does the same the other way round (`storage.shrinking`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import checksums
from storage.checksums import CRC_BYTES
from storage.errors import FormatError, StoreAccessError, UnreadableError
from storage.index import COLUMNS, Index
from storage.layout import (
    CLAIMS,
    COMMITS,
    DIGEST_KEY,
    INDEX,
    INDEX_CHUNK,
    LOG,
    MAX_METADATA_BYTES,
    ROOT_KEY,
    index_chunk_keys,
    parse_index_chunk,
    parse_root,
    root_json,
    seal,
)
from storage.location import Location
from storage.manifest import Manifest
from storage.report import written_again

_DIGESTS = re.compile(rb"([0-9a-f]{64}\n){1,2}")
_MAX_DIGEST_BYTES = 1 << 10
_PATIENCE_SEC = (0.05, 0.2, 0.0)


@dataclass(frozen=True, kw_only=True)
class Root:
    """The root's manifest as it was read.

    Attributes:
        manifest: what it says.
        sha256: digest of the zarr.json that holds it.
        growing: whether a growth, or a removal of views, has begun and not ended.
    """

    manifest: Manifest
    sha256: str
    growing: bool


def read_root(location: Location) -> Root:
    """Read the manifest and check it against `manifest.sha256`.

    Raises:
        FileNotFoundError: there is no store.
        StoreAccessError: there is no such bucket.
        FormatError: damaged, or not a teacher cache.
        VersionError: of a newer format.
    """
    raw, digests = b"", None
    for pause in _PATIENCE_SEC:
        # The two are read one after the other, so a writer can replace both in between.
        root, digests = (
            None if view is None else bytes(view)
            for view in location.get_ranges(
                [(ROOT_KEY, 0, MAX_METADATA_BYTES), (DIGEST_KEY, 0, _MAX_DIGEST_BYTES)]
            )
        )
        if root is None and digests is not None:
            raise FileNotFoundError(
                f"{location}: {ROOT_KEY} is absent, but {DIGEST_KEY} is there;"
                f" {written_again('the file')}"
            )
        if root is None:
            location.reach()  # in a bucket that is not there, objects look absent
            raise FileNotFoundError(
                f"{location}: no teacher cache here ({ROOT_KEY} is absent); check the path, or run"
                " the dump, which makes one"
            )
        raw = root
        found = checksums.sha256(raw)
        if digests and _DIGESTS.fullmatch(digests) and found.encode() in digests.split():
            growing = digests != found.encode() + b"\n"
            manifest = parse_root(raw, str(location))
            return Root(manifest=manifest, sha256=found, growing=growing)
        time.sleep(pause)
    if digests is None:
        parse_root(raw, str(location))  # another kind of zarr group says so itself
    raise FormatError(
        f"{location}: {ROOT_KEY} does not match {DIGEST_KEY}; {written_again('both')}"
    )


def refuse_inside_another(location: Location) -> None:
    """Refuse a place for a new store inside another one, which would take it for strange objects.

    Raises:
        FormatError: names the other one.
    """
    other = first_cache(location.above())
    if other is not None:
        raise FormatError(
            f"{location}: lies inside the teacher cache {other}; choose a place beside it"
        )


def first_cache(places: Iterable[Location]) -> Location | None:
    """The first of some places that is a teacher cache, finished or not; None if there is none."""
    for place in places:
        try:
            if place.size(DIGEST_KEY) is not None:
                return place
        except (StoreAccessError, UnreadableError):
            continue  # a job need not be allowed to look there
    return None


def read_index(location: Location, manifest: Manifest) -> Index:
    """Read the index and check it against the manifest's digest.

    Raises:
        FormatError: damaged or absent.
    """
    remedy = written_again("the index")
    try:
        columns = {
            column: _read_column(location, column, dtype, manifest.records)
            for column, dtype in COLUMNS.items()
        }
        index = Index(**columns, bucket_names=manifest.bucket_names)
    except FormatError as error:
        raise FormatError(f"{error}; {remedy}") from error
    except ValueError as error:
        raise FormatError(f"{location}/{INDEX}: malformed ({error}); {remedy}") from error
    if (manifest.views, manifest.slots) != (index.num_views, index.num_slots()):
        raise FormatError(
            f"{location}: the manifest's views or slots are not those of the index; {remedy}"
        )
    if index.digest() != manifest.index_sha256:
        raise FormatError(
            f"{location}/{INDEX}: damaged (its SHA-256 does not match the manifest); {remedy}"
        )
    return index


def _read_column(location: Location, column: str, dtype: str, records: int) -> NDArray[Any]:
    keys = index_chunk_keys(column, records)
    # Never more than a chunk and the byte that gives away a longer one.
    limit = INDEX_CHUNK * np.dtype(dtype).itemsize + CRC_BYTES + 1
    chunks = zip(keys, location.get_ranges([(key, 0, limit) for key in keys]), strict=True)
    parts = [
        parse_index_chunk(None if raw is None else bytes(raw), dtype, f"{location}/{key}")
        for key, raw in chunks
    ]
    return np.concatenate(parts)[:records]


def publish(location: Location, manifest: Manifest, index: Index, old_sha256: str | None) -> Root:
    """Write all metadata of a store, replacing what is there.

    Args:
        location: of the store.
        manifest: identity, buckets and arrays; the rest is filled in here.
        index: the whole plan; it begins with the one that the store had.
        old_sha256: digest of the root that is there and valid; None if there is none.
    """
    sealed, objects = seal(manifest, index)
    root = root_json(sealed)
    new_sha256 = checksums.sha256(root)
    lines = [new_sha256]
    if old_sha256 is not None and old_sha256 != new_sha256:
        lines = [old_sha256, new_sha256]
        put_and_sync(location, {DIGEST_KEY: digest_lines(lines)})
    put_and_sync(location, objects)
    put_and_sync(location, {DIGEST_KEY: digest_lines(lines)})
    # Before the root, behind which nobody looks for what a killed writer has left.
    _sweep(location, objects.keys())
    put_and_sync(location, {ROOT_KEY: root})
    put_and_sync(location, {DIGEST_KEY: digest_lines([new_sha256])})
    return Root(manifest=sealed, sha256=new_sha256, growing=False)


def digest_lines(digests: list[str]) -> bytes:
    """The content of `manifest.sha256`: one line for each root that counts as valid."""
    return "".join(f"{digest}\n" for digest in digests).encode("ascii")


def put_and_sync(location: Location, objects: dict[str, bytes]) -> None:
    """Put objects and force them to the disk before anything that follows."""
    location.put_many(objects)
    location.sync(list(objects))


def _sweep(location: Location, known: Set[str]) -> None:
    """Remove metadata that is not `known`: unfinished files, and what a growth given up has left.

    Objects of shards are not touched: an unfinished one goes when its shard is written.
    """
    for key in location.sizes():
        top, _, _ = key.partition("/")
        name = key.rpartition("/")[2]
        if top in (CLAIMS, LOG, COMMITS) or key in known or key in (ROOT_KEY, DIGEST_KEY):
            continue
        if top == INDEX or name.startswith(("zarr.", "manifest.")):
            location.delete(key)
