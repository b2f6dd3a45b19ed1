"""Dropping views: what remains is, byte for byte, the store that a dump of fewer views makes.

The order is that of growing, turned round, and every step can be done again:

1. `manifest.sha256` takes both roots' digests, so that either root is valid.
2. The root is replaced by that of the kept views. The longer index still serves it.
3. Index and zarr.json files are replaced by the shorter ones.
4. The dropped shards go, all commits before any object, then metadata that is not needed any more.
5. `manifest.sha256` takes the one digest of the new root.

A kill before step 2 leaves the whole store, a kill after it the kept views, complete; until step 5
two digests say that the work is not done.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from storage import checksums
from storage.exclusive import claimed_metadata, refuse_work_in_progress
from storage.index import Index, ShardTable
from storage.layout import (
    COMMITS,
    DIGEST_KEY,
    OURS,
    ROOT_KEY,
    commit_key,
    object_keys,
    root_json,
    seal,
)
from storage.location import Location
from storage.manifest import Manifest
from storage.metadata import Root, digest_lines, put_and_sync, read_index, read_root
from storage.progress import Progress

_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Drop:
    """What dropping views removes, or removed.

    Attributes:
        store: location.
        views: how many it holds now.
        keep: how many stay: those numbered below.
        records, shards: that the index loses.
        unfinished: whether an earlier removal was interrupted.
        num_objects, num_bytes: that are removed.
    """

    store: str
    views: int
    keep: int
    records: int
    shards: int
    unfinished: bool
    num_objects: int
    num_bytes: int

    def lines(self) -> list[str]:
        """Return what is removed as text."""
        lines = [f"remove: {self.num_objects:,} objects, {self.num_bytes / 1e9:.3f} GB"]
        if self.records:
            lines.insert(
                0,
                f"drop: views {self.keep} to {self.views - 1}: {self.records:,} records in"
                f" {self.shards:,} shards",
            )
        if self.unfinished:
            lines.insert(0, "unfinished: views were being added or dropped before")
        return lines


def plan_drop(location: Location, keep: int) -> Drop:
    """Decide what to remove so that the first `keep` views stay; changes nothing.

    Raises:
        FileNotFoundError: there is no store.
        FormatError, VersionError: its metadata is damaged, or of a newer format.
        ValueError: it holds fewer views.
    """
    root, index = _read(location, keep)
    manifest, kept = _kept(root.manifest, index, keep)
    _, objects = seal(manifest, kept)
    leftover = _leftover(manifest, kept, objects, location.sizes())
    shards = [len(ShardTable(one, manifest.shard_records)) for one in (index, kept)]
    return Drop(
        store=str(location),
        views=root.manifest.views,
        keep=keep,
        records=len(index) - len(kept),
        shards=shards[0] - shards[1],
        unfinished=root.growing,
        num_objects=len(leftover),
        num_bytes=sum(leftover.values()),
    )


def drop_views(
    location: str | os.PathLike[str] | Location, keep: int, progress: bool = False
) -> None:
    """Remove all views but the first `keep`, or finish an interrupted removal.

    Args:
        location: of the store.
        keep: views that stay.
        progress: show it on stderr.

    Raises:
        CacheError: a dump is at work on the store; nothing was changed.
        ValueError, FileNotFoundError, FormatError, VersionError: as of `plan_drop`.
    """
    location = Location(location)
    _read(location, keep)  # refused before anything is claimed
    with claimed_metadata(location):
        refuse_work_in_progress(location)
        _drop(location, keep, progress)


def _drop(location: Location, keep: int, progress: bool) -> None:
    old, index = _read(location, keep)
    manifest, kept = _kept(old.manifest, index, keep)
    sealed, objects = seal(manifest, kept)
    root = root_json(sealed)
    new_sha256 = checksums.sha256(root)
    put_and_sync(location, {DIGEST_KEY: digest_lines([old.sha256, new_sha256])})
    put_and_sync(location, {ROOT_KEY: root})
    put_and_sync(location, objects)
    leftover = _leftover(manifest, kept, objects, location.sizes())
    commits = [key for key in leftover if key.startswith(f"{COMMITS}/")]
    total = sum(leftover.values())
    with Progress("remove", total=total, unit="B", shown=progress) as bar:
        delete_objects(location, {key: leftover.pop(key) for key in commits}, bar.update)
        if location.is_local:
            # A commit must not outlive its objects, not even where the power fails: a dump that
            # adds the views again would take the shard for done.
            os.sync()
        delete_objects(location, leftover, bar.update)
    put_and_sync(location, {DIGEST_KEY: digest_lines([new_sha256])})


def _read(location: Location, keep: int) -> tuple[Root, Index]:
    root = read_root(location)
    views = root.manifest.views
    if not 1 <= keep <= views:
        raise ValueError(f"{location} holds {views} views: expected to keep 1 to {views}")
    return root, read_index(location, root.manifest)


def _kept(manifest: Manifest, index: Index, keep: int) -> tuple[Manifest, Index]:
    """Manifest, not sealed yet, and index of the first `keep` views."""
    kept = index.prefix(int(np.searchsorted(index.view, keep)))
    shorter = replace(
        manifest,
        geometries={name: manifest.geometries[name] for name in kept.bucket_names},
        arrays={name: manifest.arrays[name] for name in kept.bucket_names},
        slots={},
        digests={},
    )
    return shorter, kept


def _leftover(
    manifest: Manifest, index: Index, objects: Mapping[str, bytes], sizes: Mapping[str, int]
) -> dict[str, int]:
    """Return the objects of a store, with their sizes, that this manifest and index do not know."""
    known = set(objects)
    for shard in ShardTable(index, manifest.shard_records).shards:
        known.add(commit_key(shard))
        known.update(object_keys(manifest, shard))
    return {key: sizes[key] for key in sizes.keys() - known if OURS.fullmatch(key)}


def delete_objects(
    location: Location, sizes: Mapping[str, int], advance: Callable[[int], object] = int
) -> None:
    """Remove objects, and on a local disk the folders that this empties.

    Args:
        location: of the store.
        sizes: key to size in bytes of each object.
        advance: is told of bytes that were removed.
    """
    ordered = sorted(sizes)
    for start in range(0, len(ordered), _AT_ONCE):
        keys = ordered[start : start + _AT_ONCE]
        location.delete_many(keys)
        advance(sum(sizes[key] for key in keys))
    if not location.is_local:
        return
    folders = {folder for key in sizes for folder in Path(key).parents if folder.name}
    deepest_first = sorted(folders, key=lambda folder: -len(folder.parts))
    with ThreadPoolExecutor(16) as pool:
        for _, level in itertools.groupby(deepest_first, key=lambda folder: len(folder.parts)):
            list(pool.map(_remove_if_empty, (Path(location.name) / folder for folder in level)))


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
