"""Stores that leave images out: the plan has them, records may lack, and all else holds.

What a kill leaves of such a store is in `test_crash`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from storage import (
    CacheReader,
    CacheWriter,
    FormatError,
    IdentityError,
    MissingShardError,
    ShardId,
    compare,
    drop_views,
    repair,
    verify,
)
from storage import commit as commits
from storage.__main__ import main
from storage.layout import commit_key
from storage.location import Location
from tests.storage.cases import (
    TALL,
    WIDE,
    NewLocation,
    contents,
    fill,
    first_path,
    flip,
    make_arrays,
    make_cache,
    open_writer,
    reframe,
)

FIRST = ShardId(WIDE.name, 0)
# Shards of view 0: 1000, 1007, 1021; 1028, 1042, 1049; and 1014, 1035, which are tall.
FIRST_SLOT, MIDDLE_SLOT, LAST_SLOT, WHOLE_SHARD = 1000, 1042, 1021, (1014, 1035)
EXCLUDED = (1000, 1014, 1035, 1042)
LEVELS = ("quick", "full", "deep")


def is_out(reader: CacheReader, record: int, images: tuple[int, ...]) -> bool:
    return int(reader.index.image_id[record]) in images


def check(place: Path | Location, finished: Path, excluded: tuple[int, ...]) -> None:
    """Check that exactly the records of these images are absent, and all others are right."""
    for level in LEVELS:
        report = verify(place, level)
        assert report.ok and report.excluded == len(excluded)
        assert report.lines()[-1].endswith(f", {len(excluded)} images left out")
    reader, whole = CacheReader(place), CacheReader(finished)
    assert reader.missing() == []
    for record in range(len(reader)):
        image, view = int(reader.index.image_id[record]), int(reader.index.view[record])
        assert reader.holds(record) == (image not in excluded)
        if image in excluded:
            with pytest.raises(MissingShardError, match=r"the dump left out \(DATASET\.EXCLUDE\)"):
                reader.read(record)
            continue
        values, expected = reader.read(record), whole.read(whole.record_number(image, view))
        assert values.keys() == expected.keys()
        assert all((values[name] == expected[name]).all() for name in values)


@pytest.mark.parametrize(
    "excluded",
    [
        (FIRST_SLOT,),
        (MIDDLE_SLOT,),
        (LAST_SLOT,),
        WHOLE_SHARD,
        (FIRST_SLOT, LAST_SLOT),
        (1000, 1007, 1021, 1028, 1042, 1049),
        (7,),  # in no plan
    ],
    ids=str,
)
def test_the_rest_is_written_checked_and_read(
    tmp_path: Path, finished: Path, excluded: tuple[int, ...]
) -> None:
    writer = make_cache(tmp_path / "cache", num_views=2, excluded=excluded)
    assert not set(writer.index.image_id[writer.records_of(FIRST)].tolist()) & set(excluded)
    check(tmp_path / "cache", finished, excluded)


def test_every_backend_leaves_out_alike(new_location: NewLocation, finished: Path) -> None:
    one, other = new_location(), new_location()
    make_cache(one, num_views=2, excluded=EXCLUDED)
    check(one, finished, EXCLUDED)
    writers = [open_writer(other, num_views=2, excluded=EXCLUDED) for _ in range(3)]
    for number, shard in enumerate(reversed(writers[0].missing())):
        writer = writers[number % 3]
        assert writer.claim(shard, f"rank {number}", 60)
        fill(writer, [shard])
        writer.release(shard)
    assert contents(one) == contents(other)


def test_the_plan_and_the_identity_are_those_of_all_images(finished: Path, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", num_views=2, excluded=EXCLUDED)
    less, whole = CacheReader(tmp_path / "cache"), CacheReader(finished)
    assert less.manifest.excluded == EXCLUDED
    assert less.manifest.cache_id == whole.manifest.cache_id
    assert less.index.digest() == whole.index.digest() and len(less) == 16


def test_arrays_of_all_records_are_refused(tmp_path: Path, finished: Path) -> None:
    whole = make_arrays(open_writer(tmp_path / "whole"), FIRST)
    writer = open_writer(tmp_path / "cache", excluded=EXCLUDED)
    with pytest.raises(ValueError, match=r"echo is uint8\(3, 150\), expected uint8\(2, 150\)"):
        writer.write(FIRST, whole)


def test_what_is_left_out_reads_as_zeros_for_zarr_alone(tmp_path: Path, finished: Path) -> None:
    make_cache(tmp_path / "cache", num_views=2, excluded=EXCLUDED)
    reader = CacheReader(finished)
    root, whole = (zarr.open_group(one, mode="r") for one in (tmp_path / "cache", finished))
    for record in range(len(reader)):
        place = f"buckets/{reader.geometry_of(record).name}/echo"
        slot: Any = int(reader.index.slot[record])
        value, expected = root[place][slot], whole[place][slot]  # type: ignore[index]
        assert (value == (0 if is_out(reader, record, EXCLUDED) else expected)).all()


class TestChanges:
    def test_views_are_added_and_dropped_with_the_same_exclusion(self, tmp_path: Path) -> None:
        for views in (1, 2, 3):
            make_cache(tmp_path / "grown", num_views=views, excluded=EXCLUDED)
            make_cache(tmp_path / str(views), num_views=views, excluded=EXCLUDED)
            assert contents(tmp_path / "grown") == contents(tmp_path / str(views))
        for views in (2, 1):
            drop_views(tmp_path / "grown", views)
            assert contents(tmp_path / "grown") == contents(tmp_path / str(views))

    def test_what_is_committed_keeps_images_that_are_left_out_later(
        self, tmp_path: Path, finished: Path
    ) -> None:
        # None, one and three images in turn; shards of each time stay as they are.
        place, stages = tmp_path / "cache", [(), (1000,), (1000, 1007, 1014)]
        for excluded in stages:
            writer = open_writer(place, num_views=2, excluded=excluded)
            fill(writer, writer.missing()[:2])
            for level in LEVELS:
                report = verify(place, level)
                assert {one.kind for one in report.problems} <= {"missing"}
                assert report.excluded == len(excluded)
        reader, whole = CacheReader(place), CacheReader(finished)
        assert reader.missing() == []
        held = [[int(whole.index.image_id[record]), int(whole.index.view[record])]
                for record in range(len(whole)) if not reader.holds(record)]  # fmt: skip
        assert held == [[1000, 1], [1007, 1]]  # and 1014 was in the second stage's shard
        for record in filter(reader.holds, range(len(reader))):
            assert reader.read(record)["echo.codes"].tobytes() == (
                whole.read(record)["echo.codes"].tobytes()
            )

    def test_a_config_that_counts_images_in_again_is_refused(self, tmp_path: Path) -> None:
        place = tmp_path / "cache"
        make_cache(place, excluded=EXCLUDED)
        before = contents(place)
        said = (
            r"leaves out 2 images that the config does not, the first has the id 1000; name them in"
            r" DATASET\.EXCLUDE too, or dump to another location"
        )
        for views in (1, 2):
            with pytest.raises(IdentityError, match=said):
                open_writer(place, num_views=views, excluded=(1014, 1035, 2000))
        assert contents(place) == before

    def test_before_the_first_commit_it_begins_the_store_again(self, tmp_path: Path) -> None:
        open_writer(tmp_path / "cache", excluded=EXCLUDED)
        make_cache(tmp_path / "cache")
        make_cache(tmp_path / "whole")
        assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


class TestDamage:
    @pytest.mark.parametrize("shard", [FIRST, ShardId(TALL.name, 0)], ids=str)
    def test_a_damaged_shard_is_dropped_and_written_again(
        self, tmp_path: Path, shard: ShardId
    ) -> None:
        place = tmp_path / "cache"
        make_cache(place, excluded=EXCLUDED)  # nothing of the second shard is left
        before = contents(place)
        flip(first_path(place, shard), 5)
        assert [problem.shard for problem in verify(place).problems] == [str(shard)]
        assert repair(place).shards == (shard,)
        fill(open_writer(place, excluded=EXCLUDED))
        assert contents(place) == before

    def test_metadata_is_written_again(self, tmp_path: Path) -> None:
        place = tmp_path / "cache"
        make_cache(place, excluded=EXCLUDED)
        before = contents(place)
        (place / "zarr.json").write_bytes(b"{}")
        assert open_writer(place, excluded=EXCLUDED).missing() == []
        assert contents(place) == before

    @pytest.mark.parametrize(
        "change",
        [
            lambda records: records.update({name: one[:-1] for name, one in records.items()}),
            lambda records: records["slot"].__setitem__(0, 0),
            lambda records: records["slot"].__setitem__(0, 2),
            lambda records: records["slot"].__setitem__(0, 10**30),
            lambda records: records["slot"].__setitem__(0, "1"),
            lambda records: records["slot"].__setitem__(0, []),
            lambda records: records.update(slot="01"),
            lambda records: records["image_id"].__setitem__(0, 1000),
        ],
    )
    def test_a_commit_that_lacks_more_or_says_otherwise_is_refused(
        self, tmp_path: Path, change: Callable[[Any], Any]
    ) -> None:
        place = tmp_path / "cache"
        make_cache(place, excluded=(FIRST_SLOT,))
        body = commits.unframe((place / commit_key(FIRST)).read_bytes(), "commit")
        assert body["records"]["slot"] == [1, 2]
        change(body["records"])
        for stored in body["objects"].values():
            stored["chunks"] = stored["chunks"][: len(body["records"]["slot"])]
        (place / commit_key(FIRST)).write_bytes(reframe(body))
        (problem,) = verify(place, "quick").problems
        assert (problem.shard, problem.spoils) == (str(FIRST), True)
        with pytest.raises(FormatError, match="storage repair"):
            CacheReader(place).read(1)

    def test_a_record_may_be_absent_only_where_the_manifest_says_so(self, tmp_path: Path) -> None:
        make_cache(tmp_path / "cache")
        make_cache(tmp_path / "less", excluded=(FIRST_SLOT,))
        for key, data in contents(tmp_path / "less").items():
            if str(FIRST.bucket) in key and not key.endswith("zarr.json"):
                (tmp_path / "cache" / key).write_bytes(data)
        assert {one.shard for one in verify(tmp_path / "cache").problems} == {str(FIRST)}
        with pytest.raises(FormatError, match="the records' image_id is not that of the index"):
            CacheReader(tmp_path / "cache").read(1)


class TestCompare:
    def test_records_that_one_store_lacks_are_not_compared(
        self, tmp_path: Path, finished: Path
    ) -> None:
        make_cache(tmp_path / "cache", num_views=2, excluded=EXCLUDED)
        for stores in ((tmp_path / "cache", finished), (finished, tmp_path / "cache")):
            result = compare(*stores)
            assert {one.records for one in result.fields} == {16 - 2 * len(EXCLUDED)}
            assert all(one.differing == 0 for one in result.fields)
            assert commit_key(FIRST) in result.keys and not result.same_bytes
            numbers = (0, 4) if stores[0] == finished else (4, 0)
            assert result.plan == ("excluded: {} and {} images".format(*numbers),)

    def test_equal_exclusions_are_equal_stores(self, tmp_path: Path) -> None:
        for name in "ab":
            make_cache(tmp_path / name, excluded=EXCLUDED)
        assert compare(tmp_path / "a", tmp_path / "b").same_bytes

    def test_values_that_differ_beside_what_is_left_out(self, tmp_path: Path) -> None:
        def change(fields: dict[str, Any]) -> None:
            fields["echo.codes"][0] ^= 1

        for name in "ab":
            writer = open_writer(tmp_path / name, excluded=EXCLUDED)
            writer.write(FIRST, make_arrays(writer, FIRST, change if name == "b" else len))
            fill(writer)
        result = compare(tmp_path / "a", tmp_path / "b")
        differing = {one.field: one.differing for one in result.fields if one.differing}
        assert differing == {"echo.codes": 1} and result.plan == ()


def test_info_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cache(tmp_path / "cache", excluded=EXCLUDED)
    assert main(["info", str(tmp_path / "cache"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["excluded"] == list(EXCLUDED)


def test_opening_again_with_the_same_exclusion_changes_nothing(tmp_path: Path) -> None:
    writer = make_cache(tmp_path / "cache", excluded=EXCLUDED)
    before = contents(tmp_path / "cache")
    again = CacheWriter(tmp_path / "cache", writer.manifest, writer.index)
    assert again.missing() == [] and contents(tmp_path / "cache") == before
