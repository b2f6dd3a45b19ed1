"""Kills and full disks: what is committed stays, the next run replaces the rest."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import CacheReader, CacheWriter, StoreFullError, verify
from storage.location import PARTIAL_SUFFIX, Location
from tests.storage.cases import contents, fill, make_arrays, make_cache, make_index, make_manifest

NUM_IMAGES, NUM_VIEWS = 12, 2

# A writer that works through the plan as a rank does, claims included, without PyTorch.
WRITER = f"""
import sys
from tests.storage.cases import make_arrays, make_index, make_manifest
from storage import CacheWriter, ClaimLostError
index = make_index({NUM_IMAGES}, {NUM_VIEWS})
print("ready", flush=True)
writer = CacheWriter(sys.argv[1], make_manifest(index), index)
for shard in writer.missing():
    if writer.claim(shard, "child", float(sys.argv[2])):
        try:
            writer.write(shard, make_arrays(writer, shard))
        except ClaimLostError:  # somebody else found this writer too slow, and does it
            continue
        writer.release(shard)
"""


def start_writer(path: Path, lease_sec: float = 0.05) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(lease_sec)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def test_a_store_killed_again_and_again_ends_up_like_an_uninterrupted_one(tmp_path: Path) -> None:
    make_cache(tmp_path / "whole", NUM_IMAGES, NUM_VIEWS)
    expected = contents(tmp_path / "whole")
    rng = random.Random(7)
    path = tmp_path / "killed"
    kills, seen = 0, set()
    for delay in (0.0, 0.04, 0.1, 0.15, 0.2):
        child = start_writer(path)
        time.sleep(delay * rng.uniform(0.5, 1.5))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        seen.add(check_after_kill(path, expected))
    assert kills >= 3
    assert start_writer(path).wait() == 0
    while CacheReader(path).missing():  # claims of the dead run out
        time.sleep(0.05)
        assert start_writer(path).wait() == 0
    assert contents(path) == expected
    assert verify(path).ok


def check_after_kill(path: Path, expected: dict[str, bytes]) -> int:
    """Check that what is committed is right; return how many shards that is."""
    try:
        reader = CacheReader(path)
    except FileNotFoundError:  # killed before there was a store
        return 0
    missing = set(reader.missing())
    for record in range(len(reader)):
        if reader.place_of(record)[0] not in missing:
            reader.read(record)
    for key in Location(path).sizes("commits"):
        assert key.endswith(PARTIAL_SUFFIX) or Location(path).get(key) == expected[key]
    assert not any(problem.spoils for problem in verify(path).problems)
    return len(missing)


def test_writers_that_start_together_on_nothing_make_one_store(tmp_path: Path) -> None:
    make_cache(tmp_path / "alone", NUM_IMAGES, NUM_VIEWS)
    children = [start_writer(tmp_path / "together", lease_sec=60) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    while CacheReader(tmp_path / "together").missing():
        assert start_writer(tmp_path / "together").wait() == 0
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


@pytest.mark.parametrize("cut", range(0, 16, 3))
def test_a_write_cut_at_any_object_leaves_garbage_that_the_next_replaces(
    tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache(tmp_path / "whole")
    index = make_index()
    writer = CacheWriter(tmp_path / "cut", make_manifest(index), index)
    shard = writer.missing()[0]
    put, left = Location.put, [cut]

    def cut_put(self: Location, key: str, data: bytes) -> None:
        if left[0] == 0:
            # What a kill in the middle of a write leaves: zarr writes beside, then renames.
            path = tmp_path / "cut" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".00ff" + PARTIAL_SUFFIX).write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        left[0] -= 1
        put(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "put", cut_put)
        if cut <= len(writer.manifest.fields[shard.bucket]):
            with pytest.raises(KeyboardInterrupt):
                writer.write(shard, make_arrays(writer, shard))
            assert shard in writer.missing()
        else:
            writer.write(shard, make_arrays(writer, shard))
    fill(writer)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_stale_unfinished_file_of_the_same_shard_goes_and_others_stay(tmp_path: Path) -> None:
    index = make_index()
    writer = CacheWriter(tmp_path / "cache", make_manifest(index), index)
    shard = writer.missing()[0]
    folder = tmp_path / "cache/buckets" / shard.bucket / "pixels_crc32c/c"
    folder.mkdir(parents=True)
    mine, other = (folder / f"{number}.0123.partial" for number in (shard.number, 99))
    mine.write_bytes(b"half")
    other.write_bytes(b"somebody else is writing this")
    writer.write(shard, make_arrays(writer, shard))
    assert not mine.exists() and other.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB, where the test may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("cannot mount a small tmpfs: not root, or no mount program")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_a_clear_error_and_the_store_stays_valid(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    path = small_disk / "cache"
    index = make_index(NUM_IMAGES, NUM_VIEWS)
    writer = CacheWriter(path, make_manifest(index), index)
    first, second, *_ = writer.missing()
    fill(writer, [first])
    disk = os.statvfs(small_disk)
    room_for_some_objects = 3 * disk.f_bsize
    ballast.write_bytes(b"\0" * (disk.f_bavail * disk.f_bsize - room_for_some_objects))
    with pytest.raises(StoreFullError, match=r"no space left .* committed shards stay"):
        writer.write(second, make_arrays(writer, second))
    assert second in writer.missing()
    reader = CacheReader(path)
    for record in writer.records_of(first).tolist():
        reader.read(record)
    problems = verify(path).problems
    assert {problem.kind for problem in problems} == {"missing"}, problems
    ballast.unlink()
    fill(writer)
    assert verify(path).ok


def test_a_disk_too_full_for_a_new_store_is_a_clear_error(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"\0" * 3_000_000)
    index = make_index()
    with pytest.raises(StoreFullError, match="no space left"):
        CacheWriter(small_disk / "cache", make_manifest(index), index)
    (small_disk / "ballast").unlink()
    assert make_cache(small_disk / "cache").missing() == []
