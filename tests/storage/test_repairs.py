"""Repair and compare: damaged shards are redone, and two stores told apart by value."""

from __future__ import annotations

import errno
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import CacheReader, CacheWriter, Problem, ShardId, compare, repair, verify
from storage.layout import commit_key
from storage.schema import Array, Field
from tests.storage.cases import (
    SHARD_RECORDS,
    TALL,
    WIDE,
    contents,
    fill,
    first_path,
    flip,
    make_arrays,
    make_cache,
    make_index,
    make_manifest,
)

FIRST = ShardId(WIDE.name, 0)


def change_bound(position: int, more: float, fields: dict[str, Any]) -> None:
    fields["echo.bound"][position] += more


class TestRepair:
    def test_drops_exactly_the_damaged_shards_and_the_dump_redoes_them(self, cache: Path) -> None:
        before = contents(cache)
        flip(first_path(cache), 3)
        first_path(cache, ShardId(TALL.name, 1)).unlink()
        (cache / "buckets/0032x0048/votes/zarr.json").write_bytes(b"{}")
        done = repair(cache)
        assert done.shards == (FIRST, ShardId(TALL.name, 1)) and done.left == ()
        assert done.rewritten == ("buckets/0032x0048/votes/zarr.json",)
        after = contents(cache)
        dropped = before.keys() - after.keys()
        assert all(after[key] == before[key] for key in after)
        assert {key.split("/")[0] for key in dropped} == {"buckets", "commits"}
        assert len(dropped) == 2 * (1 + len(CacheReader(cache).manifest.arrays[WIDE.name]))
        index = make_index(num_views=2)
        writer = CacheWriter(cache, make_manifest(index), index)
        assert set(writer.missing()) == set(done.shards)
        fill(writer)
        assert contents(cache) == before

    def test_of_an_intact_store_changes_nothing(self, cache: Path) -> None:
        before = contents(cache)
        done = repair(cache)
        assert (done.shards, done.rewritten, done.left) == ((), (), ())
        assert contents(cache) == before

    def test_removes_unfinished_files(self, cache: Path) -> None:
        before = contents(cache)
        partial = first_path(cache).with_name("0.0123.partial")
        partial.write_bytes(b"half")
        done = repair(cache)
        assert done.removed == (partial.relative_to(cache).as_posix(),) and done.left == ()
        assert contents(cache) == before

    def test_of_values_that_make_no_sense_takes_the_deep_level(self, tmp_path: Path) -> None:
        index = make_index()
        writer = CacheWriter(tmp_path / "cache", make_manifest(index), index)
        fill(writer, writer.missing()[1:])
        change = partial(change_bound, 0, np.nan)
        writer.write(FIRST, make_arrays(writer, FIRST, change))
        (problem,) = verify(tmp_path / "cache", "deep").problems
        assert f"`python -m storage repair --level deep {tmp_path / 'cache'}`" in str(problem)
        assert repair(tmp_path / "cache").shards == ()
        assert repair(tmp_path / "cache", level="deep").shards == (FIRST,)

    def test_a_dump_cannot_write_a_shard_before_its_old_objects_are_gone(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = contents(cache)
        flip(first_path(cache), 3)
        index = make_index(num_views=2)
        writer = CacheWriter(cache, make_manifest(index), index)
        taken: list[bool] = []
        # The commit is gone by then, and the objects are not.
        monkeypatch.setattr("os.sync", lambda: taken.append(writer.claim(FIRST, "rank 0", 60)))
        assert repair(cache).shards == (FIRST,)
        assert taken == [False]
        assert writer.claim(FIRST, "rank 0", 60)
        fill(writer, [FIRST])
        writer.release(FIRST)
        assert contents(cache) == before

    def test_on_a_full_disk_it_drops_all_the_same(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flip(first_path(cache), 3)

        def full(path: str, data: bytes) -> bool:
            raise OSError(errno.ENOSPC, "no space left on device", path)

        monkeypatch.setattr("storage.local.create", full)
        assert repair(cache).shards == (FIRST,)
        assert not (cache / commit_key(FIRST)).exists() and not first_path(cache).exists()

    def test_objects_of_a_shard_that_another_job_has_taken_over_stay(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flip(first_path(cache), 3)
        monkeypatch.setattr("storage.claims.Claims.holds", lambda *_: False)
        repair(cache)
        assert not (cache / commit_key(FIRST)).exists() and first_path(cache).exists()

    def test_the_command_that_mends_a_store_is_one_that_a_shell_takes(
        self, finished: Path, tmp_path: Path
    ) -> None:
        cache = tmp_path / "my cache"
        shutil.copytree(finished, cache)
        flip(first_path(cache), 3)
        first_path(cache).with_name("0.0123.partial").write_bytes(b"half")
        for problem in verify(cache).problems:
            _, _, rest = str(problem).partition("`")
            words = shlex.split(rest.partition("`")[0])
            assert words == ["python", "-m", "storage", "repair", str(cache)]

    def test_leaves_a_shard_that_is_being_written(self, cache: Path) -> None:
        (cache / commit_key(FIRST)).unlink()
        before = contents(cache)
        done = repair(cache)
        assert done.shards == () and kinds_of(done.left) == ["uncommitted"]
        assert contents(cache) == before

    def test_leaves_what_it_cannot_judge(self, cache: Path) -> None:
        flip(first_path(cache), 3)
        flip(cache / "zarr.json", 50)
        before = contents(cache)
        done = repair(cache)
        assert done.shards == () and kinds_of(done.left) == ["damaged"]
        assert contents(cache) == before


def kinds_of(problems: tuple[Problem, ...]) -> list[str]:
    return [problem.kind for problem in problems]


class TestCompare:
    def test_equal_stores(self, finished: Path, cache: Path) -> None:
        result = compare(finished, cache)
        assert result.same_bytes and result.plan == ()
        assert result.lines()[-1].endswith("same plan, same bytes")

    def test_values_that_differ(self, finished: Path, cache: Path) -> None:
        index = make_index(num_views=2)
        writer = CacheWriter(cache, make_manifest(index), index)
        (cache / commit_key(FIRST)).unlink()
        writer.write(FIRST, make_arrays(writer, FIRST, partial(change_bound, 1, 0.25)))
        result = compare(finished, cache)
        by_name = {one.field: one for one in result.fields}
        assert by_name["echo.bound"].differing == 1
        assert by_name["echo.bound"].largest == pytest.approx(0.25)
        assert by_name["echo.bound"].records == 16
        assert all(one.differing == 0 for name, one in by_name.items() if name != "echo.bound")
        assert result.keys == ("buckets/0032x0048/record/c/0/0", commit_key(FIRST))
        assert not result.same_bytes and result.plan == ()

    def test_other_plans(self, finished: Path, tmp_path: Path) -> None:
        make_cache(tmp_path / "other", numerics={"precision": "float16"})
        result = compare(finished, tmp_path / "other")
        assert result.plan == (
            "numerics.precision: 'float32' and 'float16'",
            "index: 16 records in 2 views and 8 records in 1 views",
        )
        assert all(one.records == 8 and one.differing == 0 for one in result.fields)

    def test_a_field_of_other_shapes_in_some_buckets_alone(
        self, finished: Path, tmp_path: Path
    ) -> None:
        index = make_index()
        manifest = make_manifest(index)
        arrays = dict(manifest.arrays)
        echo = Array("echo", (Field("echo.codes", (7, 3), "int8"),))
        arrays[TALL.name] = (echo, *arrays[TALL.name][1:])
        writer = CacheWriter(tmp_path / "other", make_manifest(index, arrays=arrays), index)
        fill(writer)
        result = compare(finished, tmp_path / "other")
        assert result.incomparable == ("echo.codes",)
        assert "echo.bound" in {one.field for one in result.fields}

    def test_shards_of_one_store_only(self, finished: Path, cache: Path) -> None:
        (cache / commit_key(FIRST)).unlink()
        result = compare(finished, cache)
        assert result.keys == (commit_key(FIRST),)
        assert {one.records for one in result.fields} == {16 - SHARD_RECORDS}
