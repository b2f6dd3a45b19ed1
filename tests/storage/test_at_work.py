"""Checks of a store that is being written, and of one that cannot be written at all."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from zarr.storage import MemoryStore

from storage import CacheReader, CacheWriter, ShardId, StoreAccessError, compare, verify
from storage.__main__ import main
from storage.checker import ShardChecker
from storage.index import ShardTable
from storage.location import Location
from storage.metadata import read_index, read_root
from storage.repairs import drop_shards
from tests.storage.cases import (
    WIDE,
    contents,
    fill,
    first_path,
    flip,
    make_cache,
    make_index,
    make_manifest,
)

FULL = os.environ.get("GID_FAULTS") == "full"  # as `make faults` has it
FIRST = ShardId(WIDE.name, 0)


def open_writer(location: Any, num_views: int = 2) -> CacheWriter:
    index = make_index(num_views=num_views)
    return CacheWriter(location, make_manifest(index), index)


def before_objects(
    monkeypatch: pytest.MonkeyPatch, shard: ShardId, *happens: Callable[[], None]
) -> None:
    """Let things happen, one at each look, after a shard's commit and before its objects."""
    check, left = ShardChecker._check_objects, list(happens)

    def check_later(self: ShardChecker, result: Any, *rest: Any) -> None:
        if result.shard == shard and left:
            left.pop(0)()
        check(self, result, *rest)

    monkeypatch.setattr(ShardChecker, "_check_objects", check_later)


class TestOfAStoreThatIsWritten:
    def test_a_shard_committed_after_its_objects_were_listed_is_whole(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = Location(MemoryStore())
        make_cache(place)
        sizes = Location.sizes

        def old_listing(self: Location, folder: str = "") -> Mapping[str, int]:
            found = sizes(self, folder)
            if folder:
                return found
            return {key: size for key, size in found.items() if "/echo/c/0/" not in key}

        monkeypatch.setattr(Location, "sizes", old_listing)
        assert verify(place).ok

    @pytest.mark.parametrize("level", ["quick", "full", "deep"])
    @pytest.mark.parametrize("twice", [False, True])
    def test_a_shard_dropped_meanwhile_is_missing_and_not_damaged(
        self, cache: Path, level: str, twice: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        location = Location(cache)
        manifest = read_root(location).manifest
        drop = partial(drop_shards, location, manifest, [FIRST])
        before_objects(monkeypatch, FIRST, *([first_path(cache).unlink] * twice), drop)
        (problem,) = verify(cache, level).problems
        assert (problem.kind, problem.shard, problem.spoils) == ("missing", str(FIRST), False)
        assert "dropped or replaced during the check; run the dump again" in problem.message

    @pytest.mark.parametrize("level", ["quick", "full", "deep"])
    def test_a_shard_mended_meanwhile_is_whole(
        self, cache: Path, level: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = first_path(cache).read_bytes()
        first_path(cache).write_bytes(b"")
        looks: list[bytes] = []

        def mend() -> None:
            looks.append(first_path(cache).read_bytes())

        before_objects(monkeypatch, FIRST, mend)
        read_commit = ShardChecker._read_commit

        def mend_at_the_second_look(self: ShardChecker, shard: ShardId) -> bytes | None:
            if looks:
                first_path(cache).write_bytes(data)
            return read_commit(self, shard)

        monkeypatch.setattr(ShardChecker, "_read_commit", mend_at_the_second_look)
        assert verify(cache, level).ok
        assert looks == [b""]

    @pytest.mark.parametrize("level", ["quick", "full"])
    def test_views_that_are_added_meanwhile_are_not_foreign(
        self, tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_cache(tmp_path / "cache", num_views=1)
        grown: list[CacheWriter] = []

        def grow(location: Location, manifest: Any) -> Any:
            index = read_index(location, manifest)
            if not grown:
                grown.append(open_writer(tmp_path / "cache"))
                fill(grown[0], grown[0].missing()[:1])
            return index

        monkeypatch.setattr("storage.verification.read_index", grow)
        report = verify(tmp_path / "cache", level)
        assert (report.records, report.committed) == (16, 4)
        assert {problem.kind for problem in report.problems} == {"missing"}

    def test_no_moment_of_writing_and_dropping_looks_like_damage(self, cache: Path) -> None:
        writer = open_writer(cache)
        rng, ended = random.Random(3), threading.Event()
        shards = ShardTable(writer.index, writer.manifest.shard_records).shards

        def work() -> None:
            while not ended.is_set():
                shard = rng.choice(shards)
                drop_shards(writer.location, writer.manifest, [shard])
                fill(writer, [shard])

        worker = threading.Thread(target=work)
        worker.start()
        try:
            reports = [verify(cache, "full") for _ in range(100 if FULL else 10)]
        finally:
            ended.set()
            worker.join()
        problems = [problem for report in reports for problem in report.problems]
        assert {problem.kind for problem in problems} <= {"missing", "uncommitted"}
        assert not any(problem.spoils for problem in problems)
        fill(writer)
        assert verify(cache).ok


@pytest.fixture
def read_only(tmp_path: Path, finished: Path) -> Iterator[Path]:
    """A whole store and one with a damaged shard, on a file system that cannot be written."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("cannot mount a read-only tmpfs: not root, or no mount program")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        for name in ("whole", "damaged"):
            shutil.copytree(finished, place / name)
        flip(first_path(place / "damaged"), 5)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


class TestOfAReadOnlyStore:
    def test_what_only_reads_works(
        self, read_only: Path, finished: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = str(read_only / "whole")
        for level in ("quick", "full", "deep"):
            assert main(["verify", whole, "--level", level]) == 0
        assert main(["info", whole]) == 0
        assert main(["compare", whole, str(finished)]) == 0
        assert compare(whole, finished).same_bytes
        reader = CacheReader(whole)
        assert len(reader.read_many(range(len(reader)))) == 16
        assert open_writer(whole).missing() == []  # a dump that has nothing to do
        assert main(["repair", whole]) == 0
        assert main(["repair", str(read_only / "damaged"), "--dry-run"]) == 0
        assert capsys.readouterr().err == ""

    def test_repair_says_what_it_would_do_and_that_it_cannot(
        self, read_only: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        damaged = read_only / "damaged"
        before = contents(damaged)
        assert main(["repair", str(damaged)]) == 1
        out, err = capsys.readouterr()
        assert out == f"drop: {FIRST}\n"
        assert err.startswith("error: ") and err.count("\n") == 1
        assert f"{damaged}: cannot be written (Read-only file system: " in err
        assert "make it writable, and run again" in err
        assert contents(damaged) == before

    def test_a_dump_that_would_add_views_or_make_a_store_is_refused(self, read_only: Path) -> None:
        for name, num_views in (("whole", 3), ("new", 1)):
            said = f"{read_only / name}: cannot be written .Read-only file system: "
            with pytest.raises(StoreAccessError, match=said):
                open_writer(read_only / name, num_views)
