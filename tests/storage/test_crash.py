"""Kills and full disks: what is committed stays, the next run replaces the rest."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from storage import CacheReader, CacheWriter, StoreFullError, local, verify
from storage.layout import commit_key
from storage.location import PARTIAL_SUFFIX, Location
from tests.storage.cases import contents, fill, make_arrays, make_cache, make_index, make_manifest

NUM_IMAGES, NUM_VIEWS = 12, 2
FULL = os.environ.get("GID_FAULTS") == "full"  # as `make faults` has it

# A writer that works through the plan as a rank does, claims included, without PyTorch.
WRITER = f"""
import sys
import storage.exclusive
from tests.storage.cases import make_arrays, make_index, make_manifest
from storage import CacheWriter, ClaimLostError, IdentityError
index = make_index({NUM_IMAGES}, {NUM_VIEWS})
storage.exclusive._LEASE_SEC = float(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
excluded = tuple(map(int, sys.argv[4:]))
manifest = make_manifest(index, teacher={{"name": sys.argv[3]}}, excluded=excluded)
try:
    writer = CacheWriter(sys.argv[1], manifest, index)
except IdentityError as error:
    sys.exit(str(error))
for shard in writer.missing():
    if writer.claim(shard, "child", float(sys.argv[2])):
        try:
            writer.write(shard, make_arrays(writer, shard))
        except ClaimLostError:  # somebody else found this writer too slow, and does it
            continue
        writer.release(shard)
"""


def start_writer(
    path: Path, lease_sec: float = 0.05, teacher: str = "a", excluded: Sequence[int] = ()
) -> subprocess.Popen[str]:
    """Start a writer and wait until it has imported everything; it begins with `go`."""
    command = [sys.executable, "-c", WRITER, str(path), str(lease_sec), teacher]
    command += map(str, excluded)
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def go(child: subprocess.Popen[str]) -> None:
    """Let a writer begin."""
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def run_writer(path: Path, excluded: Sequence[int] = ()) -> None:
    """Let a writer do what is missing and not claimed."""
    child = start_writer(path, excluded=excluded)
    _, errors = child.communicate("go\n")
    assert child.returncode == 0, errors


def finish(path: Path, excluded: Sequence[int] = ()) -> None:
    """Write until nothing is missing: claims of the dead take a moment to run out."""
    run_writer(path, excluded)
    while CacheReader(path).missing():
        time.sleep(0.05)
        run_writer(path, excluded)


def make_whole(path: Path, excluded: tuple[int, ...] = ()) -> dict[str, bytes]:
    """Make the store of `WRITER` without any interruption and return what is in it."""
    make_cache(path, NUM_IMAGES, NUM_VIEWS, teacher={"name": "a"}, excluded=excluded)
    return contents(path)


@pytest.mark.parametrize(
    ("excluded", "kills_wanted"), [((), 60 if FULL else 4), ((1007, 1014, 1035), 2)]
)
def test_a_store_killed_again_and_again_ends_up_like_an_uninterrupted_one(
    tmp_path: Path, excluded: tuple[int, ...], kills_wanted: int
) -> None:
    expected = make_whole(tmp_path / "whole", excluded)
    rng = random.Random(7)
    kills = rounds = 0
    while kills < kills_wanted:
        path = tmp_path / f"killed{rounds}"
        rounds += 1
        alive = True
        while alive and kills < kills_wanted:
            child = start_writer(path, excluded=excluded)
            go(child)
            time.sleep(rng.uniform(0.0, 0.15))
            child.send_signal(signal.SIGKILL)
            alive = child.wait() == -signal.SIGKILL  # it was not done yet
            kills += alive
            check_after_kill(path, expected)
        finish(path, excluded)
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
        if reader.place_of(record)[0] not in missing and reader.holds(record):
            reader.read(record)
    for key in Location(path).sizes("commits"):
        assert key.endswith(PARTIAL_SUFFIX) or Location(path).get(key) == expected[key]
    assert not any(problem.spoils for problem in verify(path).problems)
    return len(missing)


def test_writers_that_start_together_on_nothing_make_one_store(tmp_path: Path) -> None:
    expected = make_whole(tmp_path / "alone")
    children = [start_writer(tmp_path / "together", lease_sec=60) for _ in range(3)]
    for child in children:
        go(child)
    assert [child.wait() for child in children] == [0, 0, 0]
    finish(tmp_path / "together")
    assert contents(tmp_path / "together") == expected


@pytest.mark.parametrize("attempt", range(20 if FULL else 2))
def test_of_two_jobs_with_different_configs_one_is_refused(tmp_path: Path, attempt: int) -> None:
    children = [start_writer(tmp_path / "cache", 60, teacher) for teacher in ("a", "b")]
    for child in children:
        go(child)
    errors = [child.communicate()[1] for child in children]
    assert sorted(child.returncode for child in children) == [0, 1]
    (refusal,) = filter(None, errors)
    assert f"{tmp_path / 'cache'} is another cache than the one asked for" in refusal
    assert 'teacher.name: stored "' in refusal
    assert verify(tmp_path / "cache").ok


@pytest.mark.parametrize("cut", range(6))
def test_a_write_cut_at_any_object_leaves_garbage_that_the_next_replaces(
    tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache(tmp_path / "whole")
    index = make_index()
    writer = CacheWriter(tmp_path / "cut", make_manifest(index), index)
    shard = writer.missing()[0]
    write_blocks, left = local.write_blocks, [cut]

    def cut_write(path: str, blocks: Iterable[bytes]) -> None:
        if left[0] == 0:
            # What a kill in the middle of a write leaves: files are written beside, then renamed.
            data = b"".join(blocks)
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).with_suffix(".00ff" + PARTIAL_SUFFIX).write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        left[0] -= 1
        write_blocks(path, blocks)

    with monkeypatch.context() as patch:
        patch.setattr(local, "write_blocks", cut_write)
        if cut <= len(writer.manifest.arrays[shard.bucket]):
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
    folder = tmp_path / "cache/buckets" / shard.bucket / "record/c"
    mine, other = (folder / f"{number}/0.0123.partial" for number in (shard.number, 99))
    for path in (mine, other):
        path.parent.mkdir(parents=True)
    mine.write_bytes(b"half")
    other.write_bytes(b"somebody else is writing this")
    writer.write(shard, make_arrays(writer, shard))
    commit = tmp_path / "cache" / commit_key(shard)
    leftover = commit.with_suffix(".0123.partial")
    others = commit.with_name("00099.0123.partial")
    commit.unlink()
    for path in (leftover, others):
        path.write_bytes(b"half")
    writer.write(shard, make_arrays(writer, shard))
    assert commit.exists() and not leftover.exists()
    assert not mine.exists() and other.exists() and others.exists()


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
