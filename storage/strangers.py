"""What lies in a store that its plan does not name, and what lies in the place of what it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from storage.exclusive import METADATA
from storage.index import ShardTable
from storage.layout import (
    CLAIMS,
    DIGEST_KEY,
    LOG,
    ROOT_KEY,
    claim_folder,
    commit_key,
    object_keys,
)
from storage.local import FOLDER, Listing
from storage.location import PARTIAL_SUFFIX
from storage.metadata import Root
from storage.report import Problem, repair_command
from storage.schema import ShardId

_OUTSIDE = (f"{CLAIMS}/", f"{LOG}/")
# Of `claims/<bucket>/<shard>/<generation>.json`: folders have fewer slashes.
_DEPTH_OF_CLAIMS = 3
# So many strangers of a folder have a line each.
_APART = 3


def committed_shards(commits: Listing, table: ShardTable) -> list[ShardId]:
    """Return the shards whose commit is there, be it a folder, or not to be looked at.

    Args:
        commits: what lies under `commits/`.
        table: the plan's shards.
    """
    keys = {commit_key(shard): shard for shard in table.shards}
    there = {*commits.sizes, *_odd_objects(keys.keys(), commits), *commits.unreadable}
    closed = tuple(f"{key}/" for key in commits.unreadable)
    return [
        shard for key, shard in keys.items() if key in there or (closed and key.startswith(closed))
    ]


def check_strangers(
    store: str, root: Root, table: ShardTable, committed: Set[ShardId], listing: Listing
) -> Iterator[Problem]:
    """Yield a problem for what is no part of a store, and for what lies in the place of a part.

    What lies in the place of an object of a committed shard, or of metadata, is left to the checks
    that read it.

    Args:
        store: its name. root: its manifest. table: its shards. committed: those with a commit.
        listing: of the whole store.
    """
    read = {ROOT_KEY, DIGEST_KEY, *root.manifest.digests}
    known = set(read)
    for shard in table.shards:
        keys = [*object_keys(root.manifest, shard), commit_key(shard)]
        known.update(keys)
        if shard in committed:
            read.update(keys)
    strangers = {key for key in (*listing.sizes, *listing.odd) if key not in known}
    strangers -= {key for key, what in listing.odd.items() if what == FOLDER}  # empty, harmless
    odd = _odd_objects(known, listing) | _odd_folders(known, table, strangers, listing)
    for key in sorted(odd.keys() - read):
        yield obstacle_problem(store, key, odd[key])
    for key, reason in sorted(listing.unreadable.items()):
        message = f"{store}/{_shown(key)}: {reason}; make it readable, and check again"
        yield Problem(kind="unreadable", where=key, message=message)
    if not root.growing:  # what an unfinished growth has left is no riddle
        left = [
            key
            for key in sorted(strangers - odd.keys())
            if not (key.startswith(_OUTSIDE) or odd.keys() & set(_folders_of(key)))
        ]
        yield from _describe(store, known, left, listing)


def _odd_objects(known: Set[str], listing: Listing) -> dict[str, str]:
    """Return the known objects in whose place something else than a file lies, and what it is."""
    odd = {key: what for key, what in listing.odd.items() if key in known}
    for key in (*listing.sizes, *listing.odd):
        if key not in known:
            odd.update((folder, FOLDER) for folder in _folders_of(key) if folder in known)
    return odd


def _odd_folders(
    known: Set[str], table: ShardTable, strangers: Set[str], listing: Listing
) -> dict[str, str]:
    """Return the folders of known objects, and of claims and notes, that are no folders."""
    inside = {key for key in strangers if not key.startswith(_OUTSIDE)}
    claims = {key for key in strangers - inside if key.count("/") < _DEPTH_OF_CLAIMS}
    folders: set[str] = set()
    if inside:
        folders = {LOG, CLAIMS, *(folder for key in known for folder in _folders_of(key))}
    if claims:
        claimed = {claim_folder(shard) for shard in (*table.shards, METADATA)}
        folders |= claimed | {folder for key in claimed for folder in _folders_of(key)}
    return {key: listing.odd.get(key, "a file") for key in (inside | claims) & folders}


def _folders_of(key: str) -> Iterator[str]:
    while "/" in key:
        key = key.rpartition("/")[0]
        yield key


def obstacle_problem(store: str, key: str, what: str) -> Problem:
    """Describe what keeps a part of a store from being written; `repair` removes it."""
    message = (
        f"{store}/{_shown(key)}: {what} lies in the place of a part of this store; run"
        f" `{repair_command(store)}`, which removes it, then the dump again"
    )
    return Problem(kind="damaged", where=key, message=message, in_the_way=True)


def _describe(
    store: str, known: Set[str], strangers: Sequence[str], listing: Listing
) -> Iterator[Problem]:
    """Yield a problem for each stranger, or for a folder of which there are many."""
    ours = {folder for key in known for folder in _folders_of(key)}
    groups: dict[str, list[str]] = {}
    for key in strangers:
        groups.setdefault(_folder_of(key, ours), []).append(key)
    for folder, keys in groups.items():
        if len(keys) > _APART:
            yield _folder_of_strangers(store, folder, keys)
        else:
            yield from (_stranger(store, key, listing.odd.get(key, "")) for key in keys)


def _folder_of(key: str, ours: Set[str]) -> str:
    """The uppermost folder of a stranger that is no part of the store, else its own; "" for none.

    What `repair` removes stays apart.
    """
    if key.endswith(PARTIAL_SUFFIX):
        return key
    folders = list(_folders_of(key))
    strange = [folder for folder in folders if folder not in ours]
    return strange[-1] if strange else next(iter(folders), "")


def _folder_of_strangers(store: str, folder: str, keys: Sequence[str]) -> Problem:
    place = f"{store}/{_shown(folder)}" if folder else store
    what = f"{len(keys)} objects that are no part of this store's plan, the first is"
    what += f" {_shown(keys[0])}; "
    if f"{folder}/{DIGEST_KEY}" in keys:
        what += "they are another cache: move it out (`python -m storage copy`, then delete it)"
    else:
        what += "delete them, if nobody put them there on purpose"
    return Problem(kind="foreign", where=folder or keys[0], message=f"{place}: {what}")


def _stranger(store: str, key: str, odd: str) -> Problem:
    if key.endswith(PARTIAL_SUFFIX):
        what = "an unfinished file: a dump is at work, or was interrupted; in the latter case"
        what += f" `{repair_command(store)}` removes it"
        return Problem(kind="uncommitted", where=key, message=f"{store}/{_shown(key)}: {what}")
    what = "no part of this store's plan; delete it, if nobody put it there on purpose"
    what = f"{odd}, and {what}" if odd else what
    return Problem(kind="foreign", where=key, message=f"{store}/{_shown(key)}: {what}")


def _shown(key: str) -> str:
    """A key as it may stand in a line: names on a disk can hold line ends, and no text at all."""
    return key if key.isascii() and key.isprintable() else ascii(key)
