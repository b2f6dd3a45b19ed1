"""The comparison of two stores: same plan, same bytes, and how far apart the values are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import canonical
from storage.layout import CLAIMS, LOG, commit_key, object_keys
from storage.location import LOCAL_BLOCK, REMOTE_BLOCK, Location
from storage.manifest import Manifest
from storage.progress import Progress
from storage.reader import CacheReader


@dataclass(frozen=True, kw_only=True)
class FieldDifference:
    """How far apart one field of two stores is.

    Attributes:
        field: its name.
        records: records compared.
        differing: records that differ in at least one element.
        largest: largest absolute difference of two elements (of codes, not of decoded values).
    """

    field: str
    records: int
    differing: int
    largest: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        stores: the two locations.
        plan: one line per difference of identity or index; empty for the same plan.
        keys: objects that differ or exist in one store only; `claims/` and `log/` do not count.
        alone: those of them that exist in one store only.
        fields: differences of the fields that both stores have, over the records of both.
        incomparable: fields that only one store has, or that have another shape or type there.
    """

    stores: tuple[str, str]
    plan: tuple[str, ...]
    keys: tuple[str, ...]
    alone: tuple[str, ...]
    fields: tuple[FieldDifference, ...]
    incomparable: tuple[str, ...]

    @property
    def same_bytes(self) -> bool:
        """Whether the two stores are the same, byte for byte."""
        return not self.keys

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON."""
        return {**asdict(self), "same_plan": not self.plan, "same_bytes": self.same_bytes}

    def lines(self) -> list[str]:
        """Return the comparison as text, the verdict last."""
        lines = [f"plan: {line}" for line in self.plan]
        lines += [f"field {name}: only in one store, or of another type" for name in
                  self.incomparable]  # fmt: skip
        for one in self.fields:
            lines.append(
                f"field {one.field}: {one.differing} of {one.records} records differ,"
                f" largest difference {one.largest:g}"
            )
        plan = "another plan" if self.plan else "same plan"
        verdicts = []
        if differing := len(self.keys) - len(self.alone):
            verdicts.append(f"{differing} objects differ")
        if self.alone:
            verdicts.append(
                f"{len(self.alone)} objects are in one alone, the first is {self.alone[0]}"
            )
        verdict = ", ".join(verdicts) or "same bytes"
        return [*lines, f"{self.stores[0]} and {self.stores[1]}: {plan}, {verdict}"]


def compare(
    first: str | os.PathLike[str] | Location,
    second: str | os.PathLike[str] | Location,
    progress: bool = False,
) -> Comparison:
    """Compare two stores. Both must be intact; shards that one of them lacks are listed by key.

    Args:
        first, second: locations of the stores.
        progress: show it on stderr.

    Raises:
        FileNotFoundError, FormatError, VersionError, CorruptChunkError: as of `CacheReader`.
    """
    readers = CacheReader(first), CacheReader(second)
    locations = readers[0].location, readers[1].location
    differing, alone = _differing_keys(*locations, progress)
    keys = tuple(sorted(differing | alone))
    fields, incomparable = _common_fields(readers[0].manifest, readers[1].manifest)
    differences = _differences(*readers, fields, set(keys), progress)
    return Comparison(
        stores=(str(readers[0].location), str(readers[1].location)),
        plan=tuple(_plan_differences(*readers)),
        keys=keys,
        alone=tuple(sorted(alone)),
        fields=tuple(differences),
        incomparable=tuple(incomparable),
    )


def _plan_differences(first: CacheReader, second: CacheReader) -> Iterator[str]:
    found = canonical.differences(first.manifest.identity, second.manifest.identity)
    for one in found:
        yield f"{one.name}: {one.stored!r} and {one.wanted!r}"
    excluded = first.manifest.excluded, second.manifest.excluded
    if excluded[0] != excluded[1]:
        yield f"excluded: {len(excluded[0])} and {len(excluded[1])} images"
    if first.manifest.index_sha256 != second.manifest.index_sha256:
        sizes = [
            f"{len(one.index)} records in {one.manifest.views} views" for one in (first, second)
        ]
        yield f"index: {sizes[0]} and {sizes[1]}"


def _differing_keys(first: Location, second: Location, shown: bool) -> tuple[set[str], set[str]]:
    """Return the keys of objects that differ, and of those that are in one store alone."""
    outside = (f"{CLAIMS}/", f"{LOG}/")
    sizes, others = (
        {key: size for key, size in one.sizes().items() if not key.startswith(outside)}
        for one in (first, second)
    )
    differing = set()
    common = sizes.keys() & others.keys()
    total = sum(sizes[key] for key in common)
    with Progress("compare bytes", total=total, unit="B", shown=shown) as progress:
        for key in common:
            if sizes[key] != others[key] or not _same_bytes(first, second, key):
                differing.add(key)
            progress.update(sizes[key])
    return differing, sizes.keys() ^ others.keys()


def _same_bytes(first: Location, second: Location, key: str) -> bool:
    # Left to themselves, a local and a remote store read in blocks of different sizes.
    block = LOCAL_BLOCK if first.is_local and second.is_local else REMOTE_BLOCK
    blocks = zip(first.read_blocks(key, block), second.read_blocks(key, block), strict=False)
    # Not ==, which compares two views element by element.
    return all(
        np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))
        for one, other in blocks
    )


def _common_fields(first: Manifest, second: Manifest) -> tuple[list[str], list[str]]:
    """Return the names of the fields that can be compared, and of the others.

    Shapes may depend on the bucket: a field has to have the same in all that both stores have.
    """
    buckets = [name for name in first.arrays if name in second.arrays]
    if not buckets:
        return [], sorted(_types(first, [next(iter(first.arrays))]))
    own, other = _types(first, buckets), _types(second, buckets)
    common = [name for name, types in own.items() if other.get(name) == types]
    return common, sorted((own.keys() | other.keys()) - set(common))


def _types(manifest: Manifest, buckets: Sequence[str]) -> dict[str, list[Any]]:
    """Name of every field to its shape and dtype in each of the buckets."""
    found: dict[str, list[Any]] = {}
    for bucket in buckets:
        for field in (field for one in manifest.arrays[bucket] for field in one.fields):
            found.setdefault(field.name, []).append((field.shape, field.dtype))
    return found


def _differences(
    first: CacheReader,
    second: CacheReader,
    fields: Sequence[str],
    differing: set[str],
    shown: bool,
) -> Iterator[FieldDifference]:
    if not fields:
        return
    signals = {name.partition(".")[0] for name in fields if "." in name}
    readers = [CacheReader(one.location, signals) for one in (first, second)]
    pairs = list(_common_records(*readers))
    counts = dict.fromkeys(fields, 0)
    largest = dict.fromkeys(fields, 0.0)
    same_index = first.manifest.index_sha256 == second.manifest.index_sha256
    with Progress("compare records", total=len(pairs), unit="records", shown=shown) as progress:
        for record, other in progress.over(pairs):
            shard, _ = readers[0].place_of(record)
            touched = not differing.isdisjoint(object_keys(readers[0].manifest, shard))
            if record == other and same_index and not touched:
                continue
            values, others = readers[0].read(record), readers[1].read(other)
            for name in fields:
                if not np.array_equal(values[name], others[name]):
                    counts[name] += 1
                    largest[name] = max(largest[name], _largest_gap(values[name], others[name]))
    for name in fields:
        yield FieldDifference(
            field=name, records=len(pairs), differing=counts[name], largest=largest[name]
        )


def _largest_gap(values: NDArray[Any], others: NDArray[Any]) -> float:
    gap = np.abs(values.astype(np.float64) - others.astype(np.float64))
    return float(np.nanmax(gap, initial=0.0))


def _common_records(first: CacheReader, second: CacheReader) -> Iterator[tuple[int, int]]:
    """Yield the numbers in both stores of every view that both have committed."""
    committed = [set(one.location.sizes("commits")) for one in (first, second)]
    left_out = {*first.manifest.excluded, *second.manifest.excluded}
    for record in range(len(first)):
        image = int(first.index.image_id[record])
        try:
            other = second.record_number(image, int(first.index.view[record]))
        except KeyError:
            continue
        places = first.place_of(record)[0], second.place_of(other)[0]
        shared_bucket = places[0].bucket == places[1].bucket
        if not shared_bucket or any(
            commit_key(place) not in keys for place, keys in zip(places, committed, strict=True)
        ):
            continue
        if image not in left_out or (first.holds(record) and second.holds(other)):
            yield record, other
