"""Manifest, index, plan and commit: what they accept, and that nothing forged gets through."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import (
    Array,
    CacheReader,
    Field,
    FormatError,
    Geometry,
    IdentityError,
    Manifest,
    ShardId,
    Signal,
    VersionError,
    assign_slots,
    build_index,
    canonical,
    checksums,
    plan_to_json,
    verify,
)
from storage import commit as commits
from storage.index import COLUMNS, Index, ShardTable
from storage.layout import commit_key, parse_index_chunk, parse_root, root_json, seal
from storage.plan import plan_from_json
from storage.schema import check_key
from tests.storage.cases import (
    WIDE,
    make_index,
    make_manifest,
    reframe,
    rewrite_root,
)

INDEX = make_index(num_views=2)
SEALED, _ = seal(make_manifest(INDEX), INDEX)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
)
NAMES = st.text(max_size=3)
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(NAMES, SCALARS, max_size=3)
HOSTILE: st.SearchStrategy[Any] = st.sampled_from(
    [
        -1, 0, 2**31, 2**63, 2**64, 10**4000, 1e308, True, None, "", "..", "../../etc/passwd",
        "/etc/passwd", "a/../../b", "0800x1344/..", [], {}, [[]], "x" * 10_000, "\x00", "\ud800",
    ]
)  # fmt: skip
FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, one in inner:
        found.append((*path, key))
        if isinstance(one, dict | list):
            found += paths(one, (*path, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a JSON value with one value inside it replaced."""
    result = copy.deepcopy(value)
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return result


class TestGeometry:
    def test_derived_sizes(self) -> None:
        assert WIDE.name == "0032x0048"
        assert WIDE.level_offsets == (0, 24, 30)
        assert (WIDE.num_positions, WIDE.num_levels) == (30, 2)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ((0, 48, ((4, 6),)), "geometry.height: got 0"),
            ((32, 48.0, ((4, 6),)), "geometry.width: got 48.0"),
            ((32, 48, ()), "number of levels"),
            ((32, 48, ((4, -6),)), "geometry.level_sizes"),
        ],
    )
    def test_impossible_sizes_are_refused(self, arguments: Any, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            Geometry(*arguments)


class TestField:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (("../x", (2,), "int8"), "field name"),
            (("x", (2,), "object"), "dtype 'object'"),
            (("x", (0,), "int8"), "shape: got 0"),
            (("x", (1 << 20, 1 << 20), "float64"), "field x: bytes"),
        ],
    )
    def test_impossible_fields_are_refused(self, arguments: Any, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            Field(*arguments)


class TestArray:
    FIELDS = (
        Field("x.a", (3,), "uint8"),
        Field("x.b", (2, 2), "float32"),
        Field("x.c", (), "int16"),
    )
    ARRAY = Array("x", FIELDS)

    def test_a_field_begins_at_a_multiple_of_its_element_size(self) -> None:
        assert self.ARRAY.offsets == (0, 4, 20) and self.ARRAY.num_bytes == 22

    def test_fields_come_apart_as_they_were_joined_and_gaps_are_zeros(self) -> None:
        rng = np.random.default_rng(0)
        values = {one.name: rng.integers(1, 99, (5, *one.shape)).astype(one.dtype)
                  for one in self.FIELDS}  # fmt: skip
        data = self.ARRAY.join(values)
        assert data.shape == (5, 22) and not data[:, 3].any()
        for field, part in self.ARRAY.split(data):
            np.testing.assert_array_equal(part, values[field.name])
            assert np.shares_memory(part, data)
        for field, part in self.ARRAY.split(data[2]):  # one record
            np.testing.assert_array_equal(part, values[field.name][2])

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda values: values.pop("x.b"), r"fields \['x.b'\] are absent"),
            (
                lambda values: values.update({"x.b": values["x.b"][:-1]}),
                r"x.b is float32\(4, 2, 2\)",
            ),
            (lambda values: values.update({"x.c": values["x.c"].astype("i4")}), "x.c is int32"),
        ],
    )
    def test_fields_that_do_not_fit_are_not_joined(
        self, change: Callable[[dict[str, Any]], Any], named: str
    ) -> None:
        values = {one.name: np.ones((5, *one.shape), one.dtype) for one in self.FIELDS}
        change(values)
        with pytest.raises(ValueError, match=named):
            self.ARRAY.join(values)

    def test_survives_the_trip_through_json(self) -> None:
        packed = replace(self.ARRAY, compression="zstd")
        assert Array.from_json(json.loads(json.dumps(packed.to_json()))) == packed

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (("../x", FIELDS), "array name"),
            (("x.y", FIELDS), "array name"),
            (("x", FIELDS, "pickle"), "compression 'pickle'"),
            (("x", ()), "no fields"),
            (("x", (Field("x.y", (1 << 28,), "float64"),) * 2), "array x: bytes"),
        ],
    )
    def test_impossible_arrays_are_refused(self, arguments: Any, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            Array(*arguments)


class TestSignal:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (
                ("a", "sounds", {}),
                "kind 'sounds', expected one of maps, scores, deltas, boxes, rows",
            ),
            (("a", "maps", {}), r"sizes \[\], expected \['channels'\] for the kind maps"),
            (("a", "maps", {"channels": 2, "anchors": 3}), r"sizes \['anchors', 'channels'\]"),
            (("a", "maps", {"channels": 0}), "signal a: channels: got 0"),
            (("record", "maps", {"channels": 2}), "signal record: every record has something"),
            (
                ("detections", "maps", {"channels": 2}),
                "signal detections: every record has something",
            ),
            (("../a", "maps", {"channels": 2}), "signal name: got '../a', expected letters"),
            (("a.b", "maps", {"channels": 2}), "signal name: got 'a.b', expected letters"),
        ],
    )
    def test_impossible_signals_are_refused(self, arguments: Any, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            Signal(*arguments)

    @pytest.mark.parametrize(
        ("kind", "sizes", "shape"),
        [
            ("maps", {"channels": 5}, (5, 30)),
            ("scores", {"anchors": 2, "classes": 7}, (60, 7)),
            ("deltas", {"anchors": 2}, (60, 4)),
            ("boxes", {"rows": 9}, (9, 4)),
            ("rows", {"rows": 9, "columns": 3}, (9, 3)),
        ],
    )
    def test_shapes_follow_from_kind_sizes_and_geometry(
        self, kind: str, sizes: dict[str, int], shape: tuple[int, ...]
    ) -> None:
        assert Signal("a", kind, sizes).shape(WIDE) == shape


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


class TestIndex:
    def test_no_shard_spans_two_views_and_views_begin_at_a_shard(self) -> None:
        table = ShardTable(INDEX, 3)
        for shard in table.shards:
            records = table.records_of(shard)
            assert len(set(INDEX.view[records])) == 1
            assert INDEX.slot[records].tolist() == [
                shard.number * 3 + i for i in range(len(records))
            ]
        assert sum(len(table.records_of(shard)) for shard in table.shards) == len(INDEX)

    def test_shards_come_in_plan_order(self) -> None:
        views = [int(INDEX.view[ShardTable(INDEX, 3).records_of(s)[0]]) for s in
                 ShardTable(INDEX, 3).shards]  # fmt: skip
        assert views == sorted(views)

    def test_adding_a_view_moves_no_record(self) -> None:
        grown = make_index(num_views=3)
        assert grown.prefix(len(INDEX)).digest() == INDEX.digest()

    def test_slots_agree_with_a_plain_loop(self) -> None:
        rng = np.random.default_rng(5)
        bucket = rng.integers(0, 4, 300).astype(np.int32)
        view = np.sort(rng.integers(0, 3, 300)).astype(np.int32)
        next_slot: dict[int, int] = {}
        last_view: dict[int, int] = {}
        expected = []
        for b, v in zip(bucket.tolist(), view.tolist(), strict=True):
            if last_view.get(b) != v:
                next_slot[b] = -(-next_slot.get(b, 0) // 8) * 8
                last_view[b] = v
            expected.append(next_slot[b])
            next_slot[b] += 1
        assert assign_slots(bucket, view, 8).tolist() == expected

    @pytest.mark.parametrize(
        ("column", "value", "named"),
        [
            ("slot", lambda old: old[::-1], "slot"),
            ("slot", lambda old: old + 1, "first slots"),
            ("slot", lambda old: np.where(old >= 3, old + 3, old), "without gaps"),
            ("view", lambda old: old + 1, "counted from 0"),
            ("view", lambda old: old * 2, "one after the other"),
            ("view", lambda old: np.where(np.arange(len(old)) < 7, 0, 1), "twice|spans two views"),
            ("image_id", lambda old: np.zeros_like(old), "occurs twice in a view"),
            ("height", lambda old: old * 0, "no pixels"),
            ("bucket", lambda old: 1 - old, "first appearance"),
            ("bucket", lambda old: old - 1, "outside"),
            ("seed", lambda old: old[:-1], "different lengths"),
            ("seed", lambda old: old.astype(float), "expected one dimension of uint64"),
        ],
    )
    def test_broken_layouts_are_refused(
        self, column: str, value: Callable[[Any], Any], named: str
    ) -> None:
        columns = {name: getattr(INDEX, name) for name in COLUMNS}
        columns[column] = value(columns[column])
        with pytest.raises(ValueError, match=named):
            ShardTable(Index(**columns, bucket_names=INDEX.bucket_names), 3)

    def test_a_plan_of_coco_is_built_in_seconds(self) -> None:
        count = 118_287
        rng = np.random.default_rng(0)
        names = np.array([f"{32 * h:04d}x{32 * w:04d}" for h in range(20, 36) for w in range(16)])
        index = build_index(
            image_id=np.tile(np.arange(count), 4), view=np.repeat(np.arange(4), count),
            seed=rng.integers(0, 2**63, 4 * count), height=np.full(4 * count, 800),
            width=np.full(4 * count, 800), bucket=names[rng.integers(0, len(names), 4 * count)],
            shard_records=32,
        )  # fmt: skip
        table = ShardTable(index, 32)
        assert 4 * count / 32 <= len(table) <= 4 * count / 32 + 4 * len(names)


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


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "..", "a/../b", "a//b", "a/", ".hidden", "a\\b", "a\0b", "a b", 7]
)
def test_keys_that_could_leave_the_prefix_are_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="does not name an object"):
        check_key(key)


class TestForgery:
    """Whatever somebody writes into the JSON of a store, only documented errors come out."""

    ROOT = json.loads(root_json(SEALED))
    PLAN = plan_to_json(SEALED, INDEX)

    @given(st.sampled_from(paths(ROOT)), HOSTILE | JSON)
    @FUZZ
    def test_manifest(self, path: tuple[Any, ...], new: Any) -> None:
        forged = replaced(self.ROOT, path, new)
        raw = json.dumps(forged).encode()
        try:
            manifest = parse_root(raw, "store")
        except (FormatError, VersionError):
            return
        for shard in map(ShardId, manifest.bucket_names, range(len(manifest.bucket_names))):
            check_key(f"buckets/{shard}")
        assert all(check_key(key) for key in manifest.digests)
        for arrays in manifest.arrays.values():
            assert all(array.num_bytes <= 1 << 31 for array in arrays)

    @given(st.binary(max_size=300))
    @FUZZ
    def test_bytes_that_are_no_manifest(self, raw: bytes) -> None:
        with pytest.raises(FormatError):
            parse_root(raw, "store")

    @given(st.sampled_from(paths(PLAN)), HOSTILE | JSON)
    @FUZZ
    def test_plan(self, path: tuple[Any, ...], new: Any) -> None:
        try:
            plan = plan_from_json(replaced(self.PLAN, path, new), "plan")
        except (FormatError, VersionError):
            return
        assert all(check_key(f"commits/{shard}") for shard in plan.shards)

    def test_commit(self, finished: Path) -> None:
        reader = CacheReader(finished)
        shard = ShardTable(reader.index, reader.manifest.shard_records).shards[0]
        raw = (finished / "commits" / f"{shard}.json").read_bytes()
        body = commits.unframe(raw, "commit")

        @given(st.sampled_from(paths(body)), HOSTILE | JSON)
        @FUZZ
        def forge(path: tuple[Any, ...], new: Any) -> None:
            try:
                forged = reframe(replaced(body, path, new))
            except ValueError:  # not even JSON
                return
            try:
                commit = commits.parse(forged, shard, reader.manifest, "store")
            except (FormatError, VersionError):
                return
            for name, stored in commit.objects.items():
                offset, length, _ = stored.chunks.T
                assert (offset >= 0).all() and (offset + length <= stored.size).all(), name
                assert (length <= 1 << 31).all()

        forge()

    @given(st.binary(max_size=300))
    @FUZZ
    def test_bytes_that_are_no_commit(self, raw: bytes) -> None:
        with pytest.raises(FormatError):
            commits.parse(raw, ShardId(WIDE.name, 0), SEALED, "store")

    @given(st.sampled_from(sorted(COLUMNS)), st.binary(max_size=300) | st.none())
    @FUZZ
    def test_bytes_that_are_no_index(self, column: str, raw: bytes | None) -> None:
        with pytest.raises(FormatError):
            parse_index_chunk(raw, COLUMNS[column], "index")

    def test_an_index_that_promises_more_than_it_holds_allocates_nothing(self, cache: Path) -> None:
        root = json.loads((cache / "zarr.json").read_bytes())
        root["attributes"]["gid"]["index"]["records"] = (1 << 27) - 1
        rewrite_root(cache, root)
        report = verify(cache)
        assert [problem.kind for problem in report.problems] == ["damaged"]


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
