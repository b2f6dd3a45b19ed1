"""Manifest, plan and canonical JSON: what they say and accept, of which version of the format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import (
    Array,
    CacheReader,
    Field,
    FormatError,
    IdentityError,
    Manifest,
    ShardId,
    VersionError,
    canonical,
    checksums,
    plan_to_json,
)
from storage import commit as commits
from storage.index import ShardTable
from storage.layout import commit_key, parse_root, root_json, seal
from storage.plan import plan_from_json
from tests.storage.cases import WIDE, make_index, make_manifest, reframe
from tests.storage.forging import FUZZ, JSON, NAMES, replaced

INDEX = make_index(num_views=2)


SEALED, _ = seal(make_manifest(INDEX), INDEX)


class TestVersions:
    """Another version is refused in one line: both versions, and the way out."""

    WAYS_OUT = pytest.mark.parametrize(
        ("version", "way_out"), [(1, "dump it again, to another location"), (3, "update it")]
    )

    def check(self, error: VersionError, version: int, way_out: str) -> None:
        said = f"written in format version {version}, this software reads version 2; {way_out}"
        assert str(error).endswith(said) and "\n" not in str(error)

    @WAYS_OUT
    def test_of_a_root(self, version: int, way_out: str) -> None:
        path = ("attributes", "gid", "format", "version")
        value = replaced(json.loads(root_json(SEALED)), path, version)
        with pytest.raises(VersionError) as caught:
            parse_root(json.dumps(value).encode(), "store")
        self.check(caught.value, version, way_out)

    def test_even_where_the_rest_is_nothing_that_is_known_here(self) -> None:
        format_1 = {"format": {"name": "gid-teacher-cache", "version": 1}, "identity": {"codec": 0}}
        with pytest.raises(VersionError):
            Manifest.from_json(format_1, "store")

    @WAYS_OUT
    def test_of_a_commit(self, finished: Path, version: int, way_out: str) -> None:
        shard, manifest = ShardId(WIDE.name, 0), CacheReader(finished).manifest
        body = commits.unframe((finished / commit_key(shard)).read_bytes(), "commit")
        forged = reframe(replaced(body, ("format", "version"), version))
        with pytest.raises(VersionError) as caught:
            commits.parse(forged, shard, manifest, "store")
        self.check(caught.value, version, way_out)

    @WAYS_OUT
    def test_of_a_plan(self, version: int, way_out: str) -> None:
        plan = replaced(plan_to_json(SEALED, INDEX), ("format", "version"), version)
        with pytest.raises(VersionError) as caught:
            plan_from_json(plan, "plan")
        self.check(caught.value, version, way_out)


class TestManifest:
    def test_survives_the_trip_through_json(self) -> None:
        again = parse_root(root_json(SEALED), "store")
        assert again == SEALED
        assert again.cache_id == SEALED.cache_id

    def test_views_do_not_change_the_identity(self) -> None:
        more, _ = seal(make_manifest(make_index(num_views=3)), make_index(num_views=3))
        assert more.cache_id == SEALED.cache_id and more != SEALED

    @pytest.mark.parametrize(
        ("changes", "lines"),
        [
            (
                {"teacher": {"tensors": "ef" * 32, "config": {"INPUT": {"FORMAT": "RGB"}}}},
                [
                    'teacher.config.INPUT.FORMAT: stored "BGR", wanted "RGB"',
                    f'teacher.tensors: stored "{"ab" * 32}", wanted "{"ef" * 32}"',
                ],
            ),
            ({"numerics": {}}, ['numerics.precision: stored "float32", wanted (absent)']),
            ({"augmentation": {"seed": 1, "scales": [30, 60]}}, ["stored [30], wanted [30, 60]"]),
            ({"preset": "balanced"}, ['preset: stored "exact", wanted "balanced"']),
            ({"shard_records": 4}, ["shard_records: stored 3, wanted 4"]),
        ],
    )
    def test_another_identity_is_refused_with_each_field_and_both_values(
        self, changes: dict[str, Any], lines: list[str]
    ) -> None:
        with pytest.raises(IdentityError) as caught:
            SEALED.check_identity(make_manifest(INDEX, **changes), "store")
        assert all(line in str(caught.value) for line in lines)

    def test_other_fields_of_a_bucket_are_refused(self) -> None:
        more = Array("more", (Field("more", (), "int8"),))
        arrays = {name: (*own, more) for name, own in SEALED.arrays.items()}
        with pytest.raises(IdentityError, match=r"buckets\.0032x0048\.arrays"):
            SEALED.check_identity(make_manifest(INDEX, arrays=arrays), "store")

    def test_a_manifest_that_was_never_sealed_is_refused(self) -> None:
        with pytest.raises(FormatError, match=r"store: the manifest is malformed \(no slots\)"):
            parse_root(root_json(make_manifest(INDEX)), "store")

    def test_a_manifest_without_a_member_is_refused_with_the_way_out(self) -> None:
        value = json.loads(root_json(SEALED))
        del value["attributes"]["gid"]["identity"]["levels"]
        with pytest.raises(FormatError, match=r"\(it has no 'levels'\); .* dump it again"):
            parse_root(json.dumps(value).encode(), "store")

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"signals": []}, "manifest.signals: got"),
            ({"preset": ""}, "manifest.preset: got ''"),
            ({"detections": {"rows": 3}}, "expected rows and classes"),
            ({"detections": {"rows": 3, "classes": 0}}, "manifest.detections.classes: got 0"),
            ({"levels": {"p3": 8}}, r"bucket 0032x0048 has 2 levels, expected 1: p3"),
            ({"levels": {"p3": 8, "p4": 0.5}}, r"manifest.levels.p4: got 0.5"),
            ({"excluded": (3, 2)}, "manifest.excluded: expected image ids, ascending"),
            ({"excluded": (2, 2)}, "manifest.excluded: expected image ids, ascending"),
            ({"excluded": ("2",)}, "manifest.excluded: expected image ids, ascending"),
        ],
    )
    def test_what_makes_no_sense_is_named(self, changes: dict[str, Any], named: str) -> None:
        with pytest.raises(ValueError, match=named):
            make_manifest(INDEX, **changes)

    def test_sections_must_be_json(self) -> None:
        with pytest.raises(ValueError, match=r"not a JSON value|not JSON compliant"):
            make_manifest(INDEX, teacher={"tensors": {1, 2}})
        with pytest.raises(ValueError, match="JSON"):
            make_manifest(INDEX, teacher={"scale": float("nan")})


class TestCanonicalJson:
    @given(JSON)
    @FUZZ
    def test_equal_values_have_equal_text_and_no_differences(self, value: Any) -> None:
        text = canonical.dump(value)
        assert canonical.dump(canonical.load(text, "it")) == text
        assert canonical.differences(value, canonical.load(text, "it")) == []

    @given(st.dictionaries(NAMES, JSON, max_size=3), st.dictionaries(NAMES, JSON, max_size=3))
    @FUZZ
    def test_different_text_means_a_named_difference(self, one: Any, other: Any) -> None:
        same = canonical.dump(one) == canonical.dump(other)
        assert same == (canonical.differences(one, other) == [])

    @pytest.mark.parametrize(
        "raw",
        [b"", b"{", b"\xff", b'{"a":1,"a":2}', b"NaN", b"[" * 100_000, b"1" * 10_000, b"Infinity"],
    )
    def test_what_is_not_json_is_refused(self, raw: bytes) -> None:
        with pytest.raises(FormatError, match="it: not valid JSON"):
            canonical.load(raw, "it")


def test_a_plan_names_identity_and_shards() -> None:
    plan = plan_from_json(json.loads(json.dumps(plan_to_json(SEALED, INDEX))), "plan")
    assert plan.cache_id == SEALED.cache_id and plan.identity == SEALED.identity
    assert list(plan.shards) == ShardTable(INDEX, 3).shards


def test_manifest_and_geometry_are_reexported() -> None:
    import storage

    for name in storage.__all__:
        assert getattr(storage, name) is not None
    assert storage.Manifest is Manifest


def test_format_version_2_is_frozen() -> None:
    """Bytes that stores in the field have. If this fails, the format has a new version."""
    assert SEALED.cache_id == "1609ac3376b276b34bfd7d34ff2f9a453e122c52b60bf9add9fed7e45a83fdd8"
    assert INDEX.digest() == "9c611d905a1226c4512932d43d537d0cac0c9e091f97502a94ddbae1c871879f"
    assert (
        checksums.sha256(root_json(SEALED))
        == "d90b4236377149e4468d464122cc74febdb4efba99344bc426ea1ce51b1e94c4"
    )
