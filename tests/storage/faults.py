"""Seeded faults of a store: which object, what happens to it, and which shard is spoilt by it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KINDS = ("flip", "truncate", "delete", "duplicate", "swap")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to a store.

    Attributes:
        kind: one of `KINDS`.
        after: key to the bytes that lie there afterwards; None for an object that is gone.
    """

    kind: str
    after: Mapping[str, bytes | None]

    @property
    def shards(self) -> set[str]:
        """Names of the shards that are spoilt."""
        return {shard_of(key) for key in self.after} - {""}

    def __str__(self) -> str:
        return f"{self.kind} {' and '.join(self.after)}"

    def apply(self, store: Path) -> None:
        """Do it."""
        put(store, self.after)

    def undo(self, store: Path, whole: Mapping[str, bytes]) -> None:
        """Bring back what was there, given the whole store."""
        put(store, {key: whole.get(key) for key in self.after})


def put(store: Path, objects: Mapping[str, bytes | None]) -> None:
    """Write objects, or remove those that are None."""
    for key, data in objects.items():
        path = store / key
        if data is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def shard_of(key: str) -> str:
    """Return "bucket/number" of the shard that an object is a part of, or ""."""
    top, _, rest = key.partition("/")
    parts = rest.split("/")
    if top == "commits":
        return f"{parts[0]}/{parts[1].removesuffix('.json')}"
    if top == "buckets" and "c" in parts:
        return f"{parts[0]}/{int(parts[parts.index('c') + 1]):05d}"
    return ""


def kind_of(key: str) -> str:
    """Return what sort of object lies at a key: of each, every part can break on its own."""
    parts = key.split("/")
    if key.endswith("zarr.json"):
        return f"{parts[0]}: zarr.json of depth {len(parts) - 1}" if len(parts) > 1 else "root"
    if parts[0] == "index":
        return "index column"
    if parts[0] == "buckets":
        return f"array {parts[2]}"
    return parts[0]


def keys_by_kind(whole: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Return the keys of a store, sorted, by `kind_of`."""
    found: dict[str, list[str]] = {}
    for key in sorted(whole):
        found.setdefault(kind_of(key), []).append(key)
    return found


def draw(kind: str, keys: list[str], whole: Mapping[str, bytes], rng: random.Random) -> Fault:
    """Draw a fault of a kind that changes at least one byte of an object of one of the keys.

    An object that is the only one of its sort is duplicated over by any other, or swapped with it.
    """
    key = rng.choice(keys)
    data = whole[key]
    if kind == "flip":
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return Fault(kind=kind, after={key: bytes(changed)})
    if kind == "truncate":
        return Fault(kind=kind, after={key: data[: rng.randrange(len(data))]})
    if kind == "delete":
        return Fault(kind=kind, after={key: None})
    others = [one for one in keys if whole[one] != data] or sorted(whole.keys() - {key})
    other = rng.choice(others)
    after: dict[str, bytes | None] = {key: whole[other]}
    if kind == "swap":
        after[other] = data
    return Fault(kind=kind, after=after)
