"""The manifest: what a store holds, and the identity that decides whether it is the right one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from storage import canonical, checksums
from storage.errors import FormatError, IdentityError, VersionError
from storage.report import written_again
from storage.schema import (
    FORMAT_NAME,
    FORMAT_VERSION,
    MAX_COUNT,
    MAX_RECORDS,
    MAX_SHARD_RECORDS,
    MAX_SIDE,
    MAX_SLOTS,
    Array,
    Geometry,
    check_bucket_name,
    check_count,
    check_key,
)

if TYPE_CHECKING:
    from storage.codecs.record import RecordCodec

SECTIONS = ("teacher", "dataset", "augmentation", "numerics")

_REWRITE = written_again("the manifest")
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds. `identity` is the part that stays when views are added.

    Attributes:
        preset: name of the table that chose the codecs.
        signals: signal name to its kind, sizes and codec, see `RecordCodec.identity`.
        levels: name of each pyramid level to its stride, pixels per position.
        detections: `rows` kept of an image, and `classes` of the teacher.
        shard_records: records of a full shard.
        geometries: bucket name to geometry, in the order of the index's bucket numbers.
        arrays: bucket name to the arrays of its records.
        teacher, dataset, augmentation, numerics: fingerprints, free JSON objects.
        excluded: ids of images that records may lack, ascending; the plan has them all the same.
        views, records: how many the store holds; 0 before it is written.
        index_sha256: digest of the index (see `Index.digest`); "" before it is written.
        slots: bucket name to the length of its arrays; empty before it is written.
        digests: key to SHA-256 of every zarr.json but the root's, and of every index object.
        format_version: version of the store format.
    """

    preset: str
    signals: Mapping[str, Any]
    levels: Mapping[str, int]
    detections: Mapping[str, int]
    shard_records: int
    geometries: Mapping[str, Geometry]
    arrays: Mapping[str, tuple[Array, ...]]
    teacher: Mapping[str, Any]
    dataset: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    numerics: Mapping[str, Any]
    excluded: tuple[int, ...] = ()
    views: int = 0
    records: int = 0
    index_sha256: str = ""
    slots: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("signals", "levels", "detections", *SECTIONS):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise ValueError(f"manifest.{name}: got {value!r}, expected an object")
            object.__setattr__(self, name, canonical.normalise(dict(value)))
        if not isinstance(self.preset, str) or not self.preset:
            raise ValueError(f"manifest.preset: got {self.preset!r}, expected a name")
        check_count("manifest.shard_records", self.shard_records, 1, MAX_SHARD_RECORDS)
        if self.detections.keys() != {"rows", "classes"}:
            raise ValueError(f"manifest.detections: {self.detections!r}, expected rows and classes")
        for name, count in self.detections.items():
            check_count(f"manifest.detections.{name}", count, 1, MAX_COUNT)
        for name, stride in self.levels.items():
            check_count(f"manifest.levels.{name}", stride, 1, MAX_SIDE)
        object.__setattr__(self, "excluded", tuple(self.excluded))
        if any(type(one) is not int for one in self.excluded) or (
            list(self.excluded) != sorted(set(self.excluded))
        ):
            raise ValueError("manifest.excluded: expected image ids, ascending")
        check_count("manifest.views", self.views, 0, MAX_COUNT)
        check_count("manifest.records", self.records, 0, MAX_RECORDS)
        self._check_buckets()
        for key, digest in (*self.digests.items(), ("index", self.index_sha256)):
            check_key(key)
            if not isinstance(digest, str) or (digest and not _SHA256.fullmatch(digest)):
                raise ValueError(f"manifest.digests[{key!r}]: got {digest!r}, expected a SHA-256")

    def _check_buckets(self) -> None:
        if not self.geometries:
            raise ValueError("manifest: no bucket, so there is nothing to store")
        if list(self.arrays) != list(self.geometries):
            raise ValueError("manifest: geometries and arrays name different buckets")
        for name, geometry in self.geometries.items():
            if check_bucket_name(name) != geometry.name:
                raise ValueError(f"manifest: bucket {name} has the geometry of {geometry.name}")
            names = _names(self.arrays[name])
            if not names or len(set(names)) != len(names):
                raise ValueError(f"manifest: bucket {name}: no arrays, or two of one name: {names}")
            if names != _names(self.arrays[next(iter(self.arrays))]):
                raise ValueError(f"manifest: bucket {name} has other fields than the first bucket")
            if geometry.num_levels != len(self.levels):
                raise ValueError(
                    f"manifest: bucket {name} has {geometry.num_levels} levels, expected"
                    f" {len(self.levels)}: {', '.join(self.levels)}"
                )
        if self.slots and self.slots.keys() != self.geometries.keys():
            raise ValueError("manifest.slots: its buckets are not those of the geometries")
        for name, slots in self.slots.items():
            check_count(f"manifest.slots[{name}]", slots, 1, MAX_SLOTS)

    @classmethod
    def create(
        cls,
        *,
        preset: str,
        codec: RecordCodec,
        levels: Mapping[str, int],
        num_classes: int,
        geometries: Iterable[Geometry],
        shard_records: int,
        teacher: Mapping[str, Any],
        dataset: Mapping[str, Any],
        augmentation: Mapping[str, Any],
        numerics: Mapping[str, Any],
        excluded: Iterable[int] = (),
    ) -> Manifest:
        """Describe a cache that is to be written.

        Args:
            preset: name of the table that chose the codecs.
            codec: of a record.
            levels: name of each level to its stride, pixels per position.
            num_classes: K of the detections.
            geometries: one of each bucket, in the order of the index's `bucket_names`.
            shard_records: records of a full shard.
            teacher, dataset, augmentation, numerics: fingerprints.
            excluded: ids of images that records may lack.
        """
        by_name = {geometry.name: geometry for geometry in geometries}
        return cls(
            preset=preset,
            signals=codec.identity,
            levels=levels,
            detections={"rows": codec.num_detections, "classes": num_classes},
            shard_records=shard_records,
            geometries=by_name,
            arrays={name: codec.arrays(one) for name, one in by_name.items()},
            teacher=teacher,
            dataset=dataset,
            augmentation=augmentation,
            numerics=numerics,
            excluded=tuple(sorted(set(excluded))),
        )

    @property
    def bucket_names(self) -> tuple[str, ...]:
        """Names of the buckets, in the order of their numbers in the index."""
        return tuple(self.geometries)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that stays the same when views are added, as JSON."""
        return {
            "format_version": self.format_version,
            "preset": self.preset,
            "signals": dict(self.signals),
            "levels": dict(self.levels),
            "detections": dict(self.detections),
            "shard_records": self.shard_records,
            **{name: getattr(self, name) for name in SECTIONS},
        }

    @cached_property
    def cache_id(self) -> str:
        """SHA-256 of the identity: equal ids mean that records can share a store."""
        return checksums.sha256(canonical.dump(self.identity))

    def check_identity(self, wanted: Manifest, store: str) -> None:
        """Refuse a store that is not the one that `wanted` describes.

        Raises:
            IdentityError: names every field that differs, with both values.
        """
        found = canonical.differences(self.identity, wanted.identity)
        for name in self.geometries.keys() & wanted.geometries.keys():
            mine, other = _bucket_json(self, name), _bucket_json(wanted, name)
            found += canonical.differences({"buckets": {name: mine}}, {"buckets": {name: other}})
        if found:
            lines = "".join(f"\n  {one}" for one in found)
            raise IdentityError(f"{store} is another cache than the one asked for:{lines}")

    def check_excluded(self, wanted: Collection[int], store: str) -> None:
        """Refuse to count images in again: shards without them are committed, and stay so.

        Args:
            wanted: ids of the images that a config leaves out.
            store: its name.

        Raises:
            IdentityError: the store leaves out others.
        """
        back = sorted(set(self.excluded) - set(wanted))
        if back:
            raise IdentityError(
                f"{store} leaves out {len(back)} images that the config does not, the first has the"
                f" id {back[0]}; name them in DATASET.EXCLUDE too, or dump to another location"
            )

    def sealed(
        self,
        *,
        views: int,
        records: int,
        index_sha256: str,
        slots: Mapping[str, int],
        digests: Mapping[str, str],
    ) -> Manifest:
        """Return the manifest as it is stored, with what depends on the index filled in."""
        return replace(
            self, views=views, records=records, index_sha256=index_sha256,
            slots=dict(slots), digests=dict(digests),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as it stands in the root's attributes."""
        return {
            "format": {"name": FORMAT_NAME, "version": self.format_version},
            "cache_id": self.cache_id,
            "identity": self.identity,
            "buckets": [_bucket_json(self, name) for name in self.geometries],
            "index": {"views": self.views, "records": self.records, "sha256": self.index_sha256},
            "excluded": list(self.excluded),
            "slots": dict(self.slots),
            "digests": dict(self.digests),
        }

    @classmethod
    def from_json(cls, value: Any, store: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            VersionError: another version of the format; names both.
            FormatError: not the manifest of a teacher cache.
        """
        check_version(value, store)
        try:
            manifest = cls(**_manifest_arguments(value))
        except KeyError as error:
            raise FormatError(
                f"{store}: the manifest is malformed (it has no {error}); if an earlier version of"
                " this software wrote it, dump it again"
            ) from error
        except (TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                f"{store}: the manifest is malformed ({error}); {_REWRITE}"
            ) from error
        if canonical.dump(manifest.to_json()) != canonical.dump(value):
            raise FormatError(
                f"{store}: the manifest contradicts itself or has unknown fields; {_REWRITE}"
            )
        return manifest


def check_version(value: Any, store: str) -> None:
    """Refuse a manifest, commit or plan of an unknown format.

    Raises:
        VersionError: another version than `FORMAT_VERSION`; names both.
        FormatError: it states no version at all.
    """
    stated = value.get("format") if isinstance(value, dict) else None
    if not isinstance(stated, dict) or stated.get("name") != FORMAT_NAME:
        raise FormatError(f"{store}: not a teacher cache (no format {FORMAT_NAME!r} stated)")
    version = stated.get("version")
    if type(version) is not int or version < 1:
        raise FormatError(f"{store}: format version {version!r} is not a positive integer")
    if version != FORMAT_VERSION:
        way_out = "update it" if version > FORMAT_VERSION else "dump it again, to another location"
        raise VersionError(
            f"{store}: written in format version {version}, this software reads version"
            f" {FORMAT_VERSION}; {way_out}"
        )


def _names(arrays: Iterable[Array]) -> list[str]:
    return [f"{one.name}/{field.name}" for one in arrays for field in one.fields]


def _bucket_json(manifest: Manifest, name: str) -> dict[str, Any]:
    return {
        "geometry": manifest.geometries[name].to_json(),
        "arrays": [one.to_json() for one in manifest.arrays[name]],
    }


def _manifest_arguments(value: dict[str, Any]) -> dict[str, Any]:
    identity, index = value["identity"], value["index"]
    geometries, arrays = {}, {}
    for bucket in value["buckets"]:
        geometry = Geometry.from_json(bucket["geometry"])
        geometries[geometry.name] = geometry
        arrays[geometry.name] = tuple(Array.from_json(one) for one in bucket["arrays"])
    return {
        "preset": identity["preset"],
        "signals": identity["signals"],
        "levels": identity["levels"],
        "detections": identity["detections"],
        "shard_records": identity["shard_records"],
        "geometries": geometries,
        "arrays": arrays,
        **{name: identity[name] for name in SECTIONS},
        "views": index["views"],
        "records": index["records"],
        "index_sha256": index["sha256"],
        "excluded": tuple(value["excluded"]),
        "slots": value["slots"],
        "digests": value["digests"],
        "format_version": value["format"]["version"],
    }
