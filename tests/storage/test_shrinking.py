"""Dropping views: the bytes of a smaller dump, whatever interrupts it, and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from zarr.storage import MemoryStore

from storage import CacheError, CacheReader, CacheWriter, FormatError, drop_views, verify
from storage.__main__ import main
from storage.location import Location
from storage.shrinking import plan_drop
from tests.storage.cases import (
    TALL,
    contents,
    fill,
    make_cache,
    make_index,
    make_manifest,
)


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk, as in the other tests."""
    monkeypatch.setattr("os.sync", lambda: None)


# (images, views, views that stay). One image is tall in its third view alone.
SHAPES = [(8, 2, 1), (8, 3, 2), (1, 3, 2), (5, 4, 1)]


@pytest.mark.parametrize(("images", "views", "keep"), SHAPES)
def test_what_remains_equals_a_dump_of_fewer_views(
    tmp_path: Path, images: int, views: int, keep: int
) -> None:
    make_cache(tmp_path / "cache", images, views)
    make_cache(tmp_path / "small", images, keep)
    drop_views(tmp_path / "cache", keep)
    assert contents(tmp_path / "cache") == contents(tmp_path / "small")
    # No empty folders either: `diff -r` knows them.
    folders = [
        sorted(path.relative_to(store) for path in store.rglob("*"))
        for store in (tmp_path / "cache", tmp_path / "small")
    ]
    assert folders[0] == folders[1]
    assert verify(tmp_path / "cache", "deep").ok


def test_every_backend_drops_views_alike(new_location: Callable[[], Location]) -> None:
    one, other = new_location(), new_location()
    make_cache(one, num_images=1, num_views=3)
    make_cache(other, num_images=1, num_views=1)
    drop_views(one, 1)
    assert contents(one) == contents(other)


class Kill(KeyboardInterrupt):
    """Stands for a kill."""


def drop_with_a_kill(
    store: Location, keep: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Drop views, killed after so many changes of the store; return whether it was killed."""
    left = [after]

    def step() -> None:
        if left[0] == 0:
            raise Kill
        left[0] -= 1

    def put_one_by_one(location: Location, objects: dict[str, bytes]) -> None:
        for key, data in objects.items():
            step()
            location.put(key, data)

    really_delete = Location.delete_many

    def delete_one_by_one(self: Location, keys: Sequence[str]) -> None:
        for key in keys:
            step()
            really_delete(self, [key])

    with monkeypatch.context() as patch:
        patch.setattr("storage.shrinking.put_and_sync", put_one_by_one)
        patch.setattr(Location, "delete_many", delete_one_by_one)
        try:
            drop_views(store, keep)
        except Kill:
            pass
        else:
            return False
    store.delete_many(list(store.sizes("claims")))  # as when the claim of the dead has run out
    return True


def test_a_kill_at_any_moment_leaves_a_valid_store_and_the_next_run_finishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, small = Location(MemoryStore()), Location(MemoryStore())
    make_cache(whole, num_images=2, num_views=3)
    make_cache(small, num_images=2, num_views=1)
    expected, all_views = contents(small), contents(whole)
    seen = set()
    for after in range(1000):
        store = Location(MemoryStore())
        store.put_many(all_views)
        killed = drop_with_a_kill(store, 1, after, monkeypatch)
        seen.add(check(store))
        if after % 2:  # the views are wanted again
            index = make_index(2, 3)
            fill(CacheWriter(store, make_manifest(index), index))
            assert contents(store) == all_views
        drop_views(store, 1)
        assert contents(store) == expected
        if not killed:
            break
    assert after > 40
    assert seen == {(3, "unfinished"), (1, "unfinished"), (3, ""), (1, "")}


def check(store: Location) -> tuple[int, str]:
    """Read every record that the store promises; return its views and what is amiss."""
    reader = CacheReader(store)
    assert reader.missing() == []
    for record in range(len(reader)):
        reader.read(record)
    kinds = {problem.kind for problem in verify(store).problems}
    assert kinds <= {"unfinished"}
    return reader.index.num_views, "".join(kinds)


def test_nothing_to_drop_changes_nothing(cache: Path) -> None:
    before = contents(cache)
    drop_views(cache, 2)
    assert contents(cache) == before


def test_what_a_writer_did_not_put_there_stays(cache: Path) -> None:
    note = cache / "buckets" / TALL.name / "README.txt"
    note.write_text("mine")
    stale = cache / "buckets" / TALL.name / "echo/c/9/0.0123.partial"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    drop_views(cache, 1)
    assert note.exists() and not stale.exists()


@pytest.mark.parametrize("keep", [0, 3, -1])
def test_views_that_are_not_there_cannot_be_kept(cache: Path, keep: int) -> None:
    before = contents(cache)
    with pytest.raises(ValueError, match="holds 2 views: expected to keep 1 to 2"):
        drop_views(cache, keep)
    assert contents(cache) == before


def test_a_store_under_work_is_left_alone(cache: Path) -> None:
    index = make_index(num_views=2)
    writer = CacheWriter(cache, make_manifest(index), index)
    shard = next(iter(CacheReader(cache).manifest.geometries))
    assert writer.claim(writer_shard(writer), "rank 3", 60)
    before = contents(cache)
    with pytest.raises(CacheError, match=rf"at work \({shard}/00000 is held by rank 3 until"):
        drop_views(cache, 1)
    assert contents(cache) == before
    writer.release(writer_shard(writer))
    claim = cache / "claims" / shard / "00000/000000.json"
    claim.parent.mkdir(parents=True, exist_ok=True)
    claim.write_text(json.dumps({"owner": "dead", "token": "1", "expires": time.time() - 1}))
    drop_views(cache, 1)
    assert CacheReader(cache).index.num_views == 1


def writer_shard(writer: CacheWriter) -> Any:
    return CacheReader(writer.location).place_of(0)[0]


def test_a_damaged_store_is_not_touched(cache: Path) -> None:
    (cache / "index/slot/c/0").write_bytes(b"")
    before = contents(cache)
    with pytest.raises(FormatError, match="index/slot"):
        drop_views(cache, 1)
    assert contents(cache) == before


def test_the_command_says_what_goes_before_it_goes(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(cache)
    assert main(["drop-views", str(cache), "--keep", "1", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "drop: views 1 to 1: 8 records in 3 shards"
    plan = plan_drop(Location(cache), 1)
    assert said[1] == f"remove: {plan.num_objects:,} objects, 0.000 GB"
    assert said[2] == f"{cache}: view 0 stays; nothing was changed yet"
    assert contents(cache) == before
    assert main(["drop-views", str(cache), "--keep", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["records"], result["shards"], result["dry_run"]) == (8, 3, False)
    after = contents(cache)
    assert result["num_objects"] == len(before) - len(after)
    assert result["num_bytes"] == sum(len(before[key]) for key in before.keys() - after.keys())


def test_wrong_use_of_the_command_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["x"], ["x", "--keep", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(["drop-views", *arguments])
        assert caught.value.code == 2
