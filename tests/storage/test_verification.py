"""Verify, repair, compare: damage is found, told apart, and undone by redoing its shard."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from zarr.storage import MemoryStore

from storage import (
    CacheReader,
    FormatError,
    Problem,
    Report,
    ShardId,
    StoreAccessError,
    repair,
    verify,
)
from storage import commit as commits
from storage.layout import commit_key, object_key
from storage.location import Location
from storage.metadata import read_root
from tests.storage.cases import (
    TALL,
    WIDE,
    NewLocation,
    contents,
    first_path,
    flip,
    make_cache,
    rewrite_root,
)

FIRST, SECOND = ShardId(WIDE.name, 0), ShardId(WIDE.name, 1)


def kinds(report: Report) -> list[str]:
    return [problem.kind for problem in report.problems]


def swap(one: Path, other: Path) -> None:
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


@pytest.mark.parametrize("level", ["quick", "full", "deep"])
def test_an_intact_store_has_no_problem(new_location: NewLocation, level: str) -> None:
    place = new_location()
    make_cache(place, num_views=2)
    report = verify(place, level)
    assert report.ok and report.problems == ()
    assert (report.records, report.shards, report.committed) == (16, 6, 6)
    assert report.lines()[-1].endswith(f"{report.num_bytes / 1e6:,.1f} MB compared")


def test_the_records_that_are_not_committed_are_not_said_to_be_compared(cache: Path) -> None:
    (cache / commit_key(FIRST)).unlink()
    report = verify(cache)
    assert (report.records, report.compared, report.committed) == (16, 13, 5)
    assert "; 5 of 6 shards, 13 of 16 records, " in report.lines()[-1]


@pytest.mark.parametrize("forked", [True, False])
def test_processes_find_what_one_finds(
    cache: Path, forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.workers._may_fork", lambda: forked)
    monkeypatch.setattr("storage.verification._WORK_PER_PROCESS", 1)
    flip(first_path(cache), 5)
    swap(first_path(cache, ShardId(TALL.name, 0)), first_path(cache, ShardId(TALL.name, 1)))
    alone, together = verify(cache), verify(cache, workers=2)
    assert alone == together
    assert kinds(alone) == ["damaged", "swapped", "swapped"]


class TestEveryByte:
    """One byte changed anywhere in the store, and `verify --level full` says so."""

    def test_of_every_object(self, finished: Path, tmp_path: Path) -> None:
        rng = random.Random(20210300)
        memory = MemoryStore()
        place = Location(memory)
        before = contents(finished)
        place.put_many(before)
        assert verify(place).ok
        seen = set()
        for key, data in sorted(before.items()):
            seen.add(kind_of(key))
            position = rng.randrange(len(data))
            changed = bytearray(data)
            changed[position] ^= 1 << rng.randrange(8)
            place.put(key, bytes(changed))
            report = verify(place)
            assert not report.ok, f"{key}, byte {position}"
            place.put(key, data)
        assert len(seen) == 7
        assert verify(place).ok

    @pytest.mark.parametrize("key", ["manifest.sha256", "commits/0032x0048/00000.json"])
    def test_of_a_small_object_at_every_position(self, finished: Path, key: str) -> None:
        place = Location(MemoryStore())
        before = contents(finished)
        place.put_many(before)
        manifest = read_root(place).manifest
        data = before[key]
        for position in range(len(data)):
            for mask in (1, 32):  # 32 changes the case of a letter
                changed = bytearray(data)
                changed[position] ^= mask
                # Only the part of the check that is about this key: the whole takes too long.
                with pytest.raises(FormatError):
                    if key == "manifest.sha256":
                        place.put(key, bytes(changed))
                        read_root(place)
                    else:
                        commits.parse(bytes(changed), FIRST, manifest, "store")

    @pytest.mark.parametrize("extra", [b"\n", b" ", b"\x00"])
    def test_nor_may_a_byte_be_added(self, cache: Path, extra: bytes) -> None:
        for key in (
            "manifest.sha256",
            "zarr.json",
            commit_key(FIRST),
            "index/seed/c/0",
            "buckets/zarr.json",
        ):
            path = cache / key
            data = path.read_bytes()
            path.write_bytes(data + extra)
            assert not verify(cache).ok, key
            path.write_bytes(data)

    def test_but_claims_and_logs_do_not_count(self, cache: Path) -> None:
        for folder in ("claims/x", "log"):
            (cache / folder).mkdir(parents=True)
            (cache / folder / "note").write_bytes(b"anything")
        assert verify(cache).ok


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, refused: Path, number: int) -> None:
    """Let the system refuse one file; who runs tests as root may open all of them."""
    intact = os.open

    def opening(path: Any, *rest: Any, **more: Any) -> int:
        if str(path) == str(refused):
            raise OSError(number, os.strerror(number), str(path))
        return intact(path, *rest, **more)

    monkeypatch.setattr("storage.local.os.open", opening)


def kind_of(key: str) -> str:
    parts = key.split("/")
    if parts[0] == "buckets":
        return "bucket metadata" if parts[-1] == "zarr.json" else "shard"
    if parts[0] == "index":
        return "index metadata" if parts[-1] == "zarr.json" else "index"
    return parts[0]


class TestToldApart:
    def one(self, cache: Path, level: str = "full") -> Problem:
        (problem,) = verify(cache, level).problems
        return problem

    def test_damaged(self, cache: Path) -> None:
        flip(first_path(cache), 7)
        assert verify(cache, "quick").ok  # sizes only
        problem = self.one(cache)
        assert problem.kind == "damaged" and problem.spoils
        assert str(problem) == (
            f"damaged: {cache}: shard 0032x0048/00000, array echo: its bytes are not those of"
            f" the commit (XXH3-128); run `python -m storage repair {cache}`, then the dump again"
        )

    @pytest.mark.parametrize("key", [commit_key(FIRST), "buckets/0032x0048/votes/c/0/0"])
    def test_a_disk_that_lost_a_sector(
        self, cache: Path, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse_to_open(monkeypatch, cache / key, errno.EIO)
        problem = self.one(cache)
        assert (problem.kind, problem.shard, problem.spoils) == ("damaged", str(FIRST), True)
        assert "cannot be read (Input/output error); run `python -m storage repair" in str(problem)

    @pytest.mark.parametrize(
        ("key", "shard"),
        [
            (commit_key(FIRST), str(FIRST)),
            ("buckets/0032x0048/votes/c/0/0", str(FIRST)),
            ("buckets/0032x0048/zarr.json", ""),
            ("index/seed/c/0", ""),
            ("manifest.sha256", ""),
        ],
    )
    def test_what_may_not_be_read_is_not_damaged_and_not_dropped(
        self, cache: Path, key: str, shard: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse_to_open(monkeypatch, cache / key, errno.EACCES)
        problem = self.one(cache)
        assert (problem.kind, problem.where, problem.shard) == ("unreadable", key, shard)
        assert key in str(problem) and "Permission denied" in str(problem)
        assert "make it readable" in str(problem)
        done = repair(cache)
        assert (done.shards, done.removed, done.left) == ((), (), (problem,))

    def test_a_folder_that_may_not_be_listed(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scandir = os.scandir

        def refuse(path: str) -> Any:
            if str(path).endswith("commits/0032x0048"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return scandir(path)

        monkeypatch.setattr("storage.local.os.scandir", refuse)
        problem = self.one(cache)  # the commits can still be read by name
        assert (problem.kind, problem.where) == ("unreadable", "commits/0032x0048")
        with pytest.raises(StoreAccessError, match=r"0032x0048: cannot be listed \(Permission"):
            CacheReader(cache).missing()

    def test_a_process_without_free_descriptors_finds_no_damage(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse_to_open(monkeypatch, first_path(cache), errno.EMFILE)
        with pytest.raises(StoreAccessError, match=r"too many open files \(limit \d+\); raise"):
            verify(cache)

    @pytest.mark.parametrize("level", ["quick", "full"])
    @pytest.mark.parametrize("size", [0, 1, 200])
    def test_truncated(self, cache: Path, level: str, size: int) -> None:
        path = first_path(cache)
        path.write_bytes(path.read_bytes()[:size])
        problem = self.one(cache, level)
        assert (problem.kind, problem.spoils) == ("truncated", True)

    @pytest.mark.parametrize("level", ["quick", "full"])
    def test_longer(self, cache: Path, level: str) -> None:
        path = first_path(cache)
        path.write_bytes(path.read_bytes() + b"\0")
        assert self.one(cache, level).kind == "damaged"

    @pytest.mark.parametrize("level", ["quick", "full"])
    def test_missing_object(self, cache: Path, level: str) -> None:
        first_path(cache).unlink()
        problem = self.one(cache, level)
        assert (problem.kind, problem.spoils) == ("missing", True)

    def test_missing_shard(self, tmp_path: Path) -> None:
        writer = make_cache(tmp_path / "cache")
        for array in writer.manifest.arrays[FIRST.bucket]:
            (tmp_path / "cache" / object_key(FIRST, array)).unlink()
        (tmp_path / "cache" / commit_key(FIRST)).unlink()
        problem = self.one(tmp_path / "cache", "quick")
        assert (problem.kind, problem.where, problem.spoils) == ("missing", str(FIRST), False)

    def test_uncommitted(self, cache: Path) -> None:
        (cache / commit_key(FIRST)).unlink()
        problem = self.one(cache, "quick")
        assert (problem.kind, problem.where, problem.spoils) == ("uncommitted", str(FIRST), False)

    def test_unfinished_files(self, cache: Path) -> None:
        path = first_path(cache)
        path.with_name("0.0123.partial").write_bytes(b"half")
        assert self.one(cache, "quick").kind == "uncommitted"

    @pytest.mark.parametrize(
        "key", ["notes.txt", "buckets/0032x0048/echo/c/99/0", "commits/0032x0048/00099.json"]
    )
    def test_foreign_objects(self, cache: Path, key: str) -> None:
        (cache / key).parent.mkdir(parents=True, exist_ok=True)
        (cache / key).write_bytes(b"?")
        assert self.one(cache, "quick").kind == "foreign"

    @pytest.mark.parametrize(
        ("folder", "inner"), [("old", "a/b"), ("buckets/0032x0048/old", "a"), ("log2", "")]
    )
    def test_many_foreign_objects_of_a_folder_are_one_line(
        self, cache: Path, folder: str, inner: str
    ) -> None:
        place = cache / folder / inner
        place.mkdir(parents=True)
        for number in range(7):
            (place / f"{number}.txt").write_bytes(b"?")
        first = "/".join(part for part in (folder, inner, "0.txt") if part)
        problem = self.one(cache, "quick")
        assert (problem.kind, problem.where) == ("foreign", folder)
        assert problem.message == (
            f"{cache}/{folder}: 7 objects that are no part of this store's plan, the first is"
            f" {first}; delete them, if nobody put them there on purpose"
        )

    def test_many_foreign_objects_beside_those_of_the_store_are_one_line(self, cache: Path) -> None:
        for number in range(7):
            (cache / f"{number}.txt").write_bytes(b"?")
        assert self.one(cache, "quick").message.startswith(f"{cache}: 7 objects that are no part")

    def test_a_cache_inside_is_one_line_that_does_not_say_delete(
        self, cache: Path, finished: Path
    ) -> None:
        shutil.copytree(finished, cache / "inner")
        problem = self.one(cache, "quick")
        assert (problem.kind, problem.where) == ("foreign", "inner")
        assert "they are another cache: move it out" in problem.message
        before = contents(cache)
        assert repair(cache).left == (problem,)
        assert contents(cache) == before

    def test_unfinished_files_stay_apart_as_a_repair_removes_them(self, cache: Path) -> None:
        place = first_path(cache)
        for number in range(7):
            place.with_name(f"0.{number}.partial").write_bytes(b"half")
        assert kinds(verify(cache, "quick")) == ["uncommitted"] * 7
        assert len(repair(cache).removed) == 7

    def test_foreign_commit(self, cache: Path, tmp_path: Path) -> None:
        make_cache(tmp_path / "other", num_views=2, teacher={"tensors": "ef" * 32})
        shutil.copy(tmp_path / "other" / commit_key(FIRST), cache / commit_key(FIRST))
        problem = self.one(cache, "quick")
        assert (problem.kind, problem.spoils) == ("foreign", True)
        assert "belongs to another cache" in problem.message

    def test_swapped_shards(self, cache: Path) -> None:
        swap(first_path(cache, FIRST), first_path(cache, SECOND))
        assert verify(cache, "quick").ok
        report = verify(cache)
        assert kinds(report) == ["swapped", "swapped"]
        assert "holds the bytes of buckets/0032x0048/echo/c/1/0;" in report.problems[0].message

    def test_swapped_shards_of_different_sizes(self, cache: Path) -> None:
        # Compressed, so hardly any two are of one size.
        manifest = CacheReader(cache).manifest
        paths = [cache / object_key(one, manifest.arrays[WIDE.name][1]) for one in (FIRST, SECOND)]
        swap(*paths)
        assert set(kinds(verify(cache, "quick"))) == {"truncated", "damaged"}
        assert kinds(verify(cache)) == ["swapped", "swapped"]

    def test_swapped_commits(self, cache: Path) -> None:
        swap(cache / commit_key(FIRST), cache / commit_key(SECOND))
        assert kinds(verify(cache, "quick")) == ["swapped", "swapped"]

    def test_swapped_commits_and_objects(self, cache: Path) -> None:
        swap(cache / commit_key(FIRST), cache / commit_key(SECOND))
        for array in CacheReader(cache).manifest.arrays[WIDE.name]:
            swap(cache / object_key(FIRST, array), cache / object_key(SECOND, array))
        assert kinds(verify(cache)) == ["swapped", "swapped"]

    @pytest.mark.parametrize("version", [1, 3])
    def test_another_version(self, cache: Path, version: int) -> None:
        root = json.loads((cache / "zarr.json").read_bytes())
        root["attributes"]["gid"]["format"]["version"] = version
        rewrite_root(cache, root)
        problem = self.one(cache)
        assert problem.kind == "version"
        assert f"version {version}" in problem.message and "version 2" in problem.message

    @pytest.mark.parametrize("key", ["zarr.json", "manifest.sha256", "index/slot/c/0"])
    def test_metadata(self, cache: Path, key: str) -> None:
        flip(cache / key, 100 % (cache / key).stat().st_size)
        assert self.one(cache, "quick").kind == "damaged"

    def test_deleted_metadata(self, cache: Path) -> None:
        (cache / "buckets/0032x0048/echo/zarr.json").unlink()
        assert self.one(cache, "quick").kind == "missing"

    def test_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no teacher cache here"):
            verify(tmp_path / "nothing")

    def test_unknown_level(self, cache: Path) -> None:
        with pytest.raises(ValueError, match="level 'thorough': expected one of quick, full, deep"):
            verify(cache, "thorough")
