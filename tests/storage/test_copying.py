"""A copy is its source byte for byte, whatever interrupts it; nothing wrong counts as copied."""

from __future__ import annotations

import json
import shutil
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import CacheError, CacheReader, StoreFullError, compare, copy_cache, local, verify
from storage.__main__ import main
from storage.layout import BUCKETS, commit_key, object_key
from storage.location import Location
from storage.schema import ShardId
from tests.storage.cases import (
    FIRST,
    TALL,
    WIDE,
    NewLocation,
    contents,
    fill,
    first_path,
    flip,
    make_cache,
    open_writer,
)

SHARDS = 6  # of the fixture `cache`


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sync", lambda: None)


@pytest.mark.parametrize("is_source", [True, False], ids=["from", "to"])
def test_a_copy_has_the_bytes_of_its_source_in_every_backend(
    new_location: NewLocation, tmp_path: Path, is_source: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Objects of several blocks.
    monkeypatch.setattr("storage.location.LOCAL_BLOCK", 512)
    monkeypatch.setattr("storage.location.REMOTE_BLOCK", 512)
    source, target = new_location(), Location(tmp_path / "local")
    if not is_source:
        source, target = target, source
    make_cache(source, num_views=2)
    done = copy_cache(source, target)
    assert (done.committed, done.copied, done.present) == (SHARDS, SHARDS, 0)
    assert compare(source, target).same_bytes
    assert verify(target, "deep").ok


def test_what_is_there_is_not_copied_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "copy"
    copy_cache(cache, target)
    (target / commit_key(FIRST)).unlink()
    for key in ("zarr.0123.partial", "buckets/0032x0048/echo/c/9/0.0123.partial"):
        path = target / key  # what a kill leaves
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    put: list[str] = []
    put_blocks = Location.put_blocks

    def note(self: Location, key: str, blocks: Any) -> None:
        put.append(key)
        put_blocks(self, key, blocks)

    monkeypatch.setattr(Location, "put_blocks", note)
    done = copy_cache(cache, target)
    assert (done.copied, done.present) == (1, SHARDS - 1)
    assert {key.split("/")[4] for key in put} == {str(FIRST.number)} and len(put) == 3
    assert contents(target) == contents(cache)


@pytest.mark.parametrize("what", ["object of another size", "absent object", "another commit"])
def test_a_shard_that_is_not_intact_at_the_target_is_copied_again(
    cache: Path, tmp_path: Path, what: str
) -> None:
    target = tmp_path / "copy"
    copy_cache(cache, target)
    path = first_path(target)
    if what == "object of another size":
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "absent object":
        path.unlink()
    else:
        flip(target / commit_key(FIRST), 20)
    assert copy_cache(cache, target).copied == 1
    assert contents(target) == contents(cache)


def test_a_commit_does_not_outlive_the_objects_that_are_replaced(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "copy"
    copy_cache(cache, target)
    first_path(target).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("storage.local.write_blocks", filling_up(1))
        with pytest.raises(StoreFullError):
            copy_cache(cache, target)
    assert not (target / commit_key(FIRST)).exists()


def test_an_unfinished_cache_is_copied_as_far_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "source", tmp_path / "copy"
    writer = open_writer(source)
    first, *others = writer.missing()
    fill(writer, [first])
    assert main(["copy", str(source), str(target)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        f"{source}: {len(others)} of {len(others) + 1} shards are not dumped yet;"
        " run the dump, then copy again"
    )
    assert contents(target) == contents(source)
    fill(writer)
    assert main(["copy", str(source), str(target)]) == 0
    assert capsys.readouterr().out.startswith(f"{target}: {len(others)} shards copied (")
    assert contents(target) == contents(source)


@pytest.mark.parametrize("damage", ["flip", "truncate", "lengthen", "delete", "folder", "commit"])
def test_a_damaged_shard_is_left_out_with_the_command_that_mends_it(
    cache: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Not the first: what was copied before is taken back.
    path = cache / object_key(FIRST, CacheReader(cache).manifest.arrays[FIRST.bucket][1])
    data = path.read_bytes()
    if damage == "flip":
        flip(path, 9)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "lengthen":
        path.write_bytes(data + data)
    elif damage == "commit":
        flip(cache / commit_key(FIRST), 60)
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    target = tmp_path / "copy"
    assert main(["copy", str(cache), str(target)]) == 1
    out, err = capsys.readouterr()
    problem, verdict = out.splitlines()
    assert problem.startswith(f"damaged: {cache}: shard {FIRST}")
    assert f"`python -m storage repair {cache}`" in problem
    assert verdict.endswith("1 could not be copied; mend the source, then copy again")
    assert err == ""
    found = verify(target)
    assert {problem.kind for problem in found.problems} == {"missing"}, found.problems
    assert found.committed == SHARDS - 1


def test_json(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(first_path(cache), 9)
    assert main(["copy", str(cache), str(tmp_path / "copy"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["copied"], found["present"], len(found["problems"])) == (SHARDS - 1, 0, 1)
    assert found["problems"][0]["shard"] == str(FIRST)


def test_damage_at_the_source_does_not_spoil_what_is_there(cache: Path, tmp_path: Path) -> None:
    whole = contents(cache)
    copy_cache(cache, tmp_path / "copy")
    flip(first_path(cache), 9)
    assert copy_cache(cache, tmp_path / "copy").problems == ()
    assert contents(tmp_path / "copy") == whole


def lay_other_cache(target: Path) -> None:
    make_cache(target, teacher={"name": "other"})


def lay_fewer_views(target: Path) -> None:
    make_cache(target, num_views=1)


def lay_file(target: Path) -> None:
    target.mkdir()
    (target / "notes.txt").write_text("mine")


def lay_damaged_root(target: Path) -> None:
    make_cache(target, num_views=2)
    flip(target / "zarr.json", 9)


def lay_commit_without_root(target: Path) -> None:
    make_cache(target, num_views=2)
    (target / "zarr.json").unlink()


@pytest.mark.parametrize(
    ("lay", "said"),
    [
        (lay_other_cache, "holds another cache, or other views"),
        (lay_fewer_views, "holds another cache, or other views"),
        (lay_file, "'notes.txt' lies there"),
        (lay_damaged_root, "no copy that can be gone on with; remove it and copy again, or "),
        (lay_commit_without_root, "lies there; choose an empty"),
    ],
)
def test_anything_else_at_the_target_is_refused_in_one_line(
    cache: Path, tmp_path: Path, lay: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    lay(target)
    before = contents(target)
    assert main(["copy", str(cache), str(target)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {target}: ") and said in err
    assert err.count("\n") == 1 and "choose an empty location" in err
    assert contents(target) == before


@pytest.mark.parametrize("inner", ["", "deep/er"])
def test_a_cache_is_not_copied_into_itself(cache: Path, inner: str) -> None:
    before = contents(cache)
    with pytest.raises(CacheError, match="lies in the same place"):
        copy_cache(cache, cache / inner)
    with pytest.raises(CacheError, match="lies in the same place"):
        copy_cache("s3://bucket/cache/", "s3://bucket/cache" + ("/" + inner if inner else ""))
    assert contents(cache) == before


def test_a_target_under_work_is_left_alone(cache: Path, tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "target", num_views=2)
    assert writer.claim(FIRST, "rank 3", 60)
    with pytest.raises(CacheError, match=rf"a dump is at work \({FIRST} is held by rank 3"):
        copy_cache(cache, tmp_path / "target")
    writer.release(FIRST)
    copy_cache(cache, tmp_path / "target")
    assert contents(tmp_path / "target") == contents(cache)


def test_a_source_whose_views_change_is_not_copied(cache: Path, tmp_path: Path) -> None:
    digests = cache / "manifest.sha256"
    digests.write_text(f"{'0' * 64}\n{digests.read_text()}")
    with pytest.raises(CacheError, match="views are being added or dropped"):
        copy_cache(cache, tmp_path / "copy")


def test_notes_come_along_and_claims_do_not(cache: Path, tmp_path: Path) -> None:
    writer = open_writer(cache, num_views=2)
    writer.write_log("run-1", {"images": 8})
    (cache / "log" / "odd name.json").write_text("{}")
    assert writer.claim(ShardId(TALL.name, 0), "rank 3", 60)
    copy_cache(cache, tmp_path / "copy")
    assert list(Location(tmp_path / "copy").sizes("log")) == ["log/run-1.json"]
    assert Location(tmp_path / "copy").sizes("claims") == {}


def test_images_that_were_excluded_since_are_excluded_in_the_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "copy"
    writer = open_writer(source)
    fill(writer, writer.missing()[:1])
    copy_cache(source, target)
    fill(open_writer(source, excluded=(1042,)))
    copy_cache(source, target)
    assert contents(target) == contents(source)
    assert verify(target).ok


def test_a_copy_that_leaves_out_more_than_its_source_stays_as_it_is(
    tmp_path: Path,
) -> None:
    source, target = tmp_path / "source", tmp_path / "copy"
    writer = open_writer(source)
    fill(writer, writer.missing()[:1])
    copy_cache(source, target)
    fill(open_writer(target, excluded=(1042,)))
    before = contents(target)
    with pytest.raises(CacheError, match=r"leaves out 1 images that the source has.* id 1042"):
        copy_cache(source, target)
    assert contents(target) == before and verify(target).ok


def test_too_little_space_is_found_before_anything_is_written(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(x.stat().st_size for x in (cache / "buckets").glob("*/*/c/*/0"))
    free = [size - 1]
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    with pytest.raises(StoreFullError, match=r"are to be copied, and .* are free; free some"):
        copy_cache(cache, tmp_path / "copy")
    assert contents(tmp_path / "copy") == {}
    free[0] = size
    copy_cache(cache, tmp_path / "copy")
    free[0] = 0  # nothing is left to be copied
    copy_cache(cache, tmp_path / "copy")


def test_a_disk_that_fills_up_ends_the_copy_and_the_next_one_completes_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "copy"
    with monkeypatch.context() as patch:
        patch.setattr("storage.local.write_blocks", filling_up(4))
        with pytest.raises(StoreFullError, match=r"no space left .* committed shards stay"):
            copy_cache(cache, target, transfers=1)
    assert verify(target).committed == 1
    assert copy_cache(cache, target).present == 1
    assert contents(target) == contents(cache)


def holds_records(path: str) -> bool:
    return f"/{BUCKETS}/" in path and "/c/" in path


def filling_up(after: int) -> Any:
    """`write_blocks` on a disk with room for so many objects, and half of one more."""
    write, left = local.write_blocks, [after]

    def until_full(blocks: Any) -> Iterator[Any]:
        yield from blocks
        raise OSError(28, "No space left on device")

    def write_blocks(path: str, blocks: Any) -> None:
        counts = holds_records(path)
        left[0] -= counts
        write(path, until_full(blocks) if counts and left[0] < 0 else blocks)

    return write_blocks


def test_one_failure_stops_the_other_transfers(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, seen = threading.Event(), []
    read_blocks = Location.read_blocks

    def read(self: Location, key: str, block: int | None = None) -> Iterator[memoryview]:
        if WIDE.name in key:
            failed.wait(10)
            time.sleep(0.2)
        seen.append(key)
        yield from read_blocks(self, key, block)

    write = local.write_blocks

    def fail(path: str, blocks: Any) -> None:
        if not holds_records(path):
            return write(path, blocks)
        list(blocks)
        failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Location, "read_blocks", read)
    monkeypatch.setattr("storage.local.write_blocks", fail)
    with pytest.raises(StoreFullError):
        copy_cache(cache, tmp_path / "copy", transfers=SHARDS)
    assert len(seen) <= SHARDS  # none went on to its second object


def test_memory_is_that_of_blocks_not_of_objects(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(64 << 20))
    source, target = Location(tmp_path), Location(tmp_path / "target")
    tracemalloc.start()
    target.put_blocks("big", source.read_blocks("big"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "target/big").stat().st_size == 64 << 20
    assert peak < 4 << 20


@pytest.mark.s3
def test_a_copy_from_s3_is_taken_up_again_and_says_how_far_it_is(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("storage.progress.LINE_EVERY_SEC", 0.0)
    url, target = f"{s3_bucket}/copied", tmp_path / "copy"
    make_cache(Location(url), num_views=2)
    with monkeypatch.context() as patch:
        patch.setattr("storage.local.write_blocks", filling_up(7))
        assert main(["copy", url, str(target), "--transfers", "1"]) == 1
    assert "error: " in capsys.readouterr().err
    assert main(["copy", url, str(target)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{target}: 4 shards copied (") and out.endswith("), 2 were there\n")
    assert err.startswith("copy: ") and " of " in err
    assert compare(url, target).same_bytes
