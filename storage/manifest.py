"""The manifest: what a store holds, and the identity that decides whether it is the right one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from storage import canonical, checksums
from storage.errors import FormatError, IdentityError, VersionError
from storage.schema import (
    FORMAT_NAME,
    FORMAT_VERSION,
    MAX_COUNT,
    MAX_RECORDS,
    MAX_SHARD_RECORDS,
    MAX_SLOTS,
    Field,
    Geometry,
    check_bucket_name,
    check_count,
    check_key,
    common_fields,
)

if TYPE_CHECKING:
    from storage.presets.base import Preset

SECTIONS = ("teacher", "dataset", "augmentation", "numerics")

_REWRITE = "run the dump again with the same config: it writes the manifest, and keeps the shards"
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds. `identity` is the part that stays when views are added.

    Attributes:
        preset, parameters, preset_version: the codec, see `Preset`.
        shard_records: records of a full shard.
        num_detections: D, the rows of `detections`.
        geometries: bucket name to geometry, in the order of the index's bucket numbers.
        fields: bucket name to the fields of its records.
        teacher, dataset, augmentation, numerics: fingerprints, free JSON objects.
        views, records: how many the store holds; 0 before it is written.
        index_sha256: digest of the index (see `Index.digest`); "" before it is written.
        slots: bucket name to the length of its arrays; empty before it is written.
        digests: key to SHA-256 of every zarr.json but the root's, and of every index object.
        format_version: version of the store format.
    """

    preset: str
    parameters: Mapping[str, Any]
    shard_records: int
    num_detections: int
    geometries: Mapping[str, Geometry]
    fields: Mapping[str, tuple[Field, ...]]
    teacher: Mapping[str, Any]
    dataset: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    numerics: Mapping[str, Any]
    views: int = 0
    records: int = 0
    index_sha256: str = ""
    slots: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    preset_version: int = 1

    def __post_init__(self) -> None:
        for name in ("parameters", *SECTIONS):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise ValueError(f"manifest.{name}: got {value!r}, expected an object")
            object.__setattr__(self, name, canonical.normalise(dict(value)))
        if not isinstance(self.preset, str) or not self.preset:
            raise ValueError(f"manifest.preset: got {self.preset!r}, expected a name")
        check_count("manifest.preset_version", self.preset_version, 1, MAX_COUNT)
        check_count("manifest.shard_records", self.shard_records, 1, MAX_SHARD_RECORDS)
        check_count("manifest.num_detections", self.num_detections, 1, MAX_COUNT)
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
        if list(self.fields) != list(self.geometries):
            raise ValueError("manifest: geometries and fields name different buckets")
        for name, geometry in self.geometries.items():
            if check_bucket_name(name) != geometry.name:
                raise ValueError(f"manifest: bucket {name} has the geometry of {geometry.name}")
            names = [one.name for one in self.fields[name]]
            if not names or len(set(names)) != len(names):
                raise ValueError(f"manifest: bucket {name}: no fields, or two of one name: {names}")
            if names != [one.name for one in self.fields[next(iter(self.fields))]]:
                raise ValueError(f"manifest: bucket {name} has other fields than the first bucket")
        if len({_model(geometry) for geometry in self.geometries.values()}) != 1:
            raise ValueError("manifest: buckets disagree on channels, classes, anchors or levels")
        if self.slots and self.slots.keys() != self.geometries.keys():
            raise ValueError("manifest.slots: its buckets are not those of the geometries")
        for name, slots in self.slots.items():
            check_count(f"manifest.slots[{name}]", slots, 1, MAX_SLOTS)

    @classmethod
    def create(
        cls,
        *,
        preset: Preset,
        geometries: Iterable[Geometry],
        shard_records: int,
        num_detections: int,
        teacher: Mapping[str, Any],
        dataset: Mapping[str, Any],
        augmentation: Mapping[str, Any],
        numerics: Mapping[str, Any],
    ) -> Manifest:
        """Describe a cache that is to be written.

        Args:
            preset: the codec; its fields and the common ones make up a record.
            geometries: one of each bucket, in the order of the index's `bucket_names`.
            shard_records: records of a full shard.
            num_detections: D, the most detections kept of one image.
            teacher, dataset, augmentation, numerics: fingerprints.
        """
        by_name = {geometry.name: geometry for geometry in geometries}
        common = common_fields(num_detections)
        return cls(
            preset=preset.name,
            parameters=preset.parameters,
            preset_version=preset.version,
            shard_records=shard_records,
            num_detections=num_detections,
            geometries=by_name,
            fields={name: (*preset.fields(one), *common) for name, one in by_name.items()},
            teacher=teacher,
            dataset=dataset,
            augmentation=augmentation,
            numerics=numerics,
        )

    @property
    def codec(self) -> dict[str, Any]:
        """Preset name, version and parameters, as JSON; see `Preset.codec`."""
        return {
            "preset": self.preset,
            "version": self.preset_version,
            "parameters": dict(self.parameters),
        }

    @property
    def bucket_names(self) -> tuple[str, ...]:
        """Names of the buckets, in the order of their numbers in the index."""
        return tuple(self.geometries)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that stays the same when views are added, as JSON."""
        channels, num_classes, num_anchors, num_levels = _model(
            next(iter(self.geometries.values()))
        )
        return {
            "format_version": self.format_version,
            "codec": self.codec,
            "shard_records": self.shard_records,
            "num_detections": self.num_detections,
            "model": {
                "channels": channels,
                "num_classes": num_classes,
                "num_anchors": num_anchors,
                "num_levels": num_levels,
            },
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
            "slots": dict(self.slots),
            "digests": dict(self.digests),
        }

    @classmethod
    def from_json(cls, value: Any, store: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            VersionError: a newer format; names both versions.
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
        VersionError: the version is newer than `FORMAT_VERSION`; names both.
        FormatError: it states no version at all.
    """
    stated = value.get("format") if isinstance(value, dict) else None
    if not isinstance(stated, dict) or stated.get("name") != FORMAT_NAME:
        raise FormatError(f"{store}: not a teacher cache (no format {FORMAT_NAME!r} stated)")
    version = stated.get("version")
    if type(version) is not int or version < 1:
        raise FormatError(f"{store}: format version {version!r} is not a positive integer")
    if version > FORMAT_VERSION:
        raise VersionError(
            f"{store}: written in format version {version}, this software reads up to"
            f" version {FORMAT_VERSION}; update it"
        )


def _model(geometry: Geometry) -> tuple[int, int, int, int]:
    return (
        geometry.channels, geometry.num_classes, geometry.num_anchors, geometry.num_levels,
    )  # fmt: skip


def _bucket_json(manifest: Manifest, name: str) -> dict[str, Any]:
    return {
        "geometry": manifest.geometries[name].to_json(),
        "fields": [one.to_json() for one in manifest.fields[name]],
    }


def _manifest_arguments(value: dict[str, Any]) -> dict[str, Any]:
    identity, index = value["identity"], value["index"]
    geometries, fields = {}, {}
    for bucket in value["buckets"]:
        geometry = Geometry.from_json(bucket["geometry"])
        geometries[geometry.name] = geometry
        fields[geometry.name] = tuple(Field.from_json(one) for one in bucket["fields"])
    return {
        "preset": identity["codec"]["preset"],
        "parameters": identity["codec"]["parameters"],
        "preset_version": identity["codec"]["version"],
        "shard_records": identity["shard_records"],
        "num_detections": identity["num_detections"],
        "geometries": geometries,
        "fields": fields,
        **{name: identity[name] for name in SECTIONS},
        "views": index["views"],
        "records": index["records"],
        "index_sha256": index["sha256"],
        "slots": value["slots"],
        "digests": value["digests"],
        "format_version": value["format"]["version"],
    }
