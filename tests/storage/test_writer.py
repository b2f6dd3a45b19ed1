"""The writer: what it creates, grows, commits, claims and refuses."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from storage import (
    CacheReader,
    CacheWriter,
    FormatError,
    IdentityError,
    StoreAccessError,
    VersionError,
    checksums,
    copy_cache,
    read_logs,
    verify,
)
from storage.index import ShardTable
from storage.layout import DIGEST_KEY, ROOT_KEY, commit_key, object_key
from storage.location import Location
from storage.shards import chunk_table, chunks_at
from tests.storage.cases import (
    NewLocation,
    contents,
    fill,
    make_arrays,
    make_cache,
    make_fields,
    make_index,
    make_manifest,
    open_writer,
    rewrite_root,
)


class TestCreating:
    def test_a_new_store_lacks_every_shard_in_plan_order(self, new_location: NewLocation) -> None:
        writer = open_writer(new_location(), num_views=2)
        assert writer.missing() == ShardTable(writer.index, 3).shards
        assert [int(writer.records_of(shard)[0]) for shard in writer.missing()] == sorted(
            int(writer.records_of(shard)[0]) for shard in writer.missing()
        )

    def test_equal_plans_give_equal_stores(self, new_location: NewLocation) -> None:
        one, other = new_location(), new_location()
        make_cache(one, num_views=2)
        writer = open_writer(other, num_views=2)
        fill(writer, reversed(writer.missing()))  # in any order
        assert contents(one) == contents(other)

    def test_opening_again_changes_nothing(self, new_location: NewLocation) -> None:
        place = new_location()
        make_cache(place)
        before = contents(place)
        assert open_writer(place).missing() == []
        assert contents(place) == before

    def test_writing_a_committed_shard_again_changes_nothing(
        self, new_location: NewLocation
    ) -> None:
        place = new_location()
        writer = make_cache(place)
        before = contents(place)
        shard = ShardTable(writer.index, 3).shards[0]
        arrays = make_arrays(writer, shard)
        arrays["echo"] = arrays["echo"] + 1
        writer.write(shard, arrays)
        assert contents(place) == before

    def test_buckets_in_another_order_are_refused(self, tmp_path: Path) -> None:
        index = make_index()
        manifest = make_manifest(index)
        names = list(reversed(manifest.bucket_names))
        turned = make_manifest(
            index,
            geometries={name: manifest.geometries[name] for name in names},
            arrays={name: manifest.arrays[name] for name in names},
        )
        with pytest.raises(ValueError, match="different buckets, or in another order"):
            CacheWriter(tmp_path / "cache", turned, index)

    def test_a_folder_with_other_things_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(FormatError, match=r"'thesis\.tex', which is no part"):
            open_writer(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("inner", ["sub", "buckets/0032x0048/sub/deeper"])
    def test_a_place_inside_another_cache_is_refused(
        self, cache: Path, finished: Path, inner: str
    ) -> None:
        before = contents(cache)
        for make in (open_writer, lambda place: copy_cache(finished, place)):
            with pytest.raises(FormatError, match=rf"/{inner}: lies inside the .* {cache}; choose"):
                make(cache / inner)
        assert contents(cache) == before

    def test_a_place_inside_another_cache_is_known_through_links(
        self, cache: Path, tmp_path: Path
    ) -> None:
        (cache / "lost").mkdir()
        (tmp_path / "link").symlink_to(cache / "lost")
        (cache / "out").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").mkdir()
        for place in (tmp_path / "link", cache / "out/new"):
            with pytest.raises(FormatError, match="lies inside the teacher cache"):
                open_writer(place)

    def test_a_cache_that_already_lies_in_another_goes_on(
        self, tmp_path: Path, finished: Path
    ) -> None:
        open_writer(tmp_path / "outer/inner")
        shutil.copytree(finished, tmp_path / "outer", dirs_exist_ok=True)
        assert open_writer(tmp_path / "outer/inner").missing()

    @pytest.mark.s3
    def test_a_prefix_inside_another_cache_is_refused(self, s3_bucket: str) -> None:
        make_cache(Location(f"{s3_bucket}/outer"))
        with pytest.raises(FormatError, match=rf"lies inside the .* {s3_bucket}/outer; choose"):
            open_writer(f"{s3_bucket}/outer/far/below")
        open_writer(f"{s3_bucket}/outer2")  # beside it

    def test_a_place_above_that_may_not_be_looked_at_is_no_obstacle(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = Location.size

        def refused(self: Location, key: str) -> int | None:
            if key == DIGEST_KEY:
                raise StoreAccessError("403 Forbidden")
            return size(self, key)

        monkeypatch.setattr(Location, "size", refused)
        assert open_writer(tmp_path / "cache").missing()

    def test_another_zarr_group_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "zarr.json").write_text('{"zarr_format":3,"node_type":"group"}')
        with pytest.raises(FormatError, match="not a teacher cache"):
            open_writer(tmp_path)


class TestArrays:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda a: a.pop("echo"), r"absent \['echo'\]"),
            (lambda a: a.update(extra=a["echo"]), r"unknown \['extra'\]"),
            (
                lambda a: a.update(echo=a["echo"][:-1]),
                r"echo is uint8\(2, 150\), expected uint8\(3",
            ),
            (lambda a: a.update(echo=a["echo"].astype("i8")), "echo is int64"),
        ],
    )
    def test_arrays_that_do_not_fit_are_refused(
        self, tmp_path: Path, change: Callable[[dict[str, Any]], Any], named: str
    ) -> None:
        writer = open_writer(tmp_path / "cache")
        shard = writer.missing()[0]
        arrays = make_arrays(writer, shard)
        change(arrays)
        with pytest.raises(ValueError, match=named):
            writer.write(shard, arrays)
        assert shard in writer.missing()

    def test_a_shard_outside_the_plan_is_refused(self, tmp_path: Path) -> None:
        writer = open_writer(tmp_path / "cache")
        shard = type(writer.missing()[0])("0032x0048", 99)
        with pytest.raises(ValueError, match="no shard 0032x0048/00099"):
            writer.records_of(shard)

    def test_strided_arrays_are_stored_as_they_read(self, tmp_path: Path) -> None:
        writer = open_writer(tmp_path / "cache")
        shard = writer.missing()[0]
        arrays = make_arrays(writer, shard)
        writer.write(shard, {name: np.asfortranarray(one) for name, one in arrays.items()})
        read = CacheReader(tmp_path / "cache").read_many(writer.records_of(shard).tolist())
        for name, value in make_fields(writer, shard).items():
            np.testing.assert_array_equal(np.stack([one[name] for one in read]), value, name)

    def test_a_disk_that_gives_back_other_bytes_is_noticed_before_the_commit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer = open_writer(tmp_path / "cache")
        shard = writer.missing()[0]
        put = Location.put_blocks

        def flipping_put(self: Location, key: str, blocks: Iterable[memoryview]) -> None:
            *others, last = map(bytes, blocks)
            put(self, key, [*others, last[:-1] + bytes([last[-1] ^ 1])])

        monkeypatch.setattr(Location, "put_blocks", flipping_put)
        with pytest.raises(StoreAccessError, match="reads back other bytes"):
            writer.write(shard, make_arrays(writer, shard))
        assert shard in writer.missing()

    @pytest.mark.parametrize("before", [True, False])
    def test_memory_that_fails_around_a_digest_is_noticed_before_the_commit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
    ) -> None:
        writer = open_writer(tmp_path / "cache")
        shard = writer.missing()[0]

        crc32c = checksums.crc32c

        def failing(data: memoryview, crc: int = 0) -> int:
            found = None if before else crc32c(data, crc)
            if not data.readonly:
                data[0] ^= 1  # where it lies when it is put
            return crc32c(data, crc) if found is None else found

        monkeypatch.setattr(checksums, "crc32c", failing)
        with pytest.raises(StoreAccessError, match="reads back other bytes"):
            writer.write(shard, make_arrays(writer, shard))
        assert shard in writer.missing()


def test_everything_is_on_the_disk_before_the_commit_and_the_commit_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(tmp_path / "cache")
    shard = writer.missing()[0]
    committed = tmp_path / "cache" / commit_key(shard)
    synced: dict[str, bool] = {}  # and whether the commit was there by then
    monkeypatch.setattr(
        "storage.local._fsync", lambda path: synced.setdefault(str(path), committed.exists())
    )
    writer.write(shard, make_arrays(writer, shard))
    for array in writer.manifest.arrays[shard.bucket]:
        path = tmp_path / "cache" / object_key(shard, array)
        while path != tmp_path:  # the file, and every folder that names it
            assert synced[str(path)] is False, path
            path = path.parent
    assert synced[str(committed)] and synced[str(committed.parent)]


class BusyStore(MemoryStore):
    """Counts how many objects are being put at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.most = 0

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.02)
        await super().set(key, value, byte_range)
        self.under_way -= 1


def test_arrays_travel_to_an_object_store_together_and_the_commit_after_them(cache: Path) -> None:
    store = BusyStore()
    writer = open_writer(Location(store), num_views=2)
    store.most = 0
    shard = writer.missing()[0]
    under_way: list[int] = []
    put = Location.put

    def note(self: Location, key: str, data: bytes) -> None:
        if key == commit_key(shard):
            under_way.append(store.under_way)
        put(self, key, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Location, "put", note)
        writer.write(shard, make_arrays(writer, shard))
    assert store.most > 1
    assert under_way == [0]
    fill(writer, writer.missing())
    assert contents(Location(store)) == contents(cache)


class TestIdentity:
    def test_another_teacher_is_refused_with_both_values(self, cache: Path) -> None:
        before = contents(cache)
        with pytest.raises(IdentityError, match=r'teacher\.tensors: stored "ab.*wanted "ef'):
            open_writer(cache, num_views=2, teacher={"tensors": "ef" * 32})
        assert contents(cache) == before

    def test_another_seed_is_another_plan(self, cache: Path) -> None:
        index = make_index(num_views=2)
        columns = {**vars(index), "seed": index.seed + np.uint64(1)}
        other = type(index)(**columns)
        with pytest.raises(IdentityError, match="holds another plan: 16 records in 2 views"):
            CacheWriter(cache, make_manifest(other), other)

    def test_fewer_views_than_the_store_has_are_refused(self, cache: Path) -> None:
        with pytest.raises(IdentityError, match="holds 2 views, the plan only 1"):
            open_writer(cache, num_views=1)

    @pytest.mark.parametrize(("version", "way_out"), [(1, "dump it again"), (3, "update it")])
    def test_a_store_of_another_version_is_refused_and_left_alone(
        self, cache: Path, version: int, way_out: str
    ) -> None:
        root = json.loads((cache / "zarr.json").read_bytes())
        root["attributes"]["gid"]["format"]["version"] = version
        rewrite_root(cache, root)
        before = contents(cache)
        with pytest.raises(VersionError, match=rf"version {version}, .* version 2; {way_out}"):
            open_writer(cache, num_views=2)
        assert contents(cache) == before


class TestGrowing:
    def test_a_grown_store_equals_one_dumped_at_once(self, new_location: NewLocation) -> None:
        grown, at_once = new_location(), new_location()
        for num_views in (1, 2, 3):
            make_cache(grown, num_views=num_views)
        make_cache(at_once, num_views=3)
        assert contents(grown) == contents(at_once)
        assert verify(grown).ok

    def test_a_growth_cut_at_any_write_leaves_a_readable_store_and_can_be_done_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_cache(tmp_path / "whole", num_views=2)
        expected = contents(tmp_path / "whole")
        make_cache(tmp_path / "old", num_views=1)
        old_index = CacheReader(tmp_path / "old").index.digest()
        put, steps = Location.put, 0
        while True:
            place = tmp_path / f"cut{steps}"
            shutil.copytree(tmp_path / "old", place)
            left = [steps]

            def cut_put(self: Location, key: str, data: bytes, left: list[int] = left) -> None:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
                put(self, key, data)

            with monkeypatch.context() as patch:
                patch.setattr(Location, "put", cut_put)
                patch.setattr(Location, "sync", lambda *_: None)
                try:
                    open_writer(place, num_views=2)
                    break
                except KeyboardInterrupt:
                    pass
            reader = CacheReader(place)
            assert reader.index.prefix(8).digest() == old_index
            assert {"echo.codes", "votes.values", "detections"} < reader.read(3).keys()
            finished_early = contents(place).keys() == expected.keys()
            if steps % 4 == 2 and not finished_early:
                assert not verify(place).ok
            if steps % 12 == 0:  # every twelfth also to its end
                make_cache(place, num_views=2)
                assert contents(place) == expected
            steps += 3
        assert steps > 20

    def test_a_growth_given_up_is_undone_by_the_old_plan(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = tmp_path / "cache"
        make_cache(place, num_images=2)  # in the first view no image is tall
        before = contents(place)
        put = Location.put

        def stop_at_root(self: Location, key: str, data: bytes) -> None:
            if key == ROOT_KEY:
                raise KeyboardInterrupt
            put(self, key, data)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Location, "put", stop_at_root)
            make_cache(place, num_images=2, num_views=2)
        assert [problem.kind for problem in verify(place).problems] == ["unfinished"]
        make_cache(place, num_images=2)
        assert contents(place) == before


class TestHealing:
    """Spoilt metadata is written again, since it follows from the config; shards stay."""

    @pytest.mark.parametrize("key", ["zarr.json", "manifest.sha256", "index/seed/c/0"])
    @pytest.mark.parametrize("damage", ["flip", "delete"])
    def test_damaged_metadata_is_written_again(self, cache: Path, key: str, damage: str) -> None:
        before = contents(cache)
        path = cache / key
        if damage == "flip":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        else:
            path.unlink()
        assert open_writer(cache, num_views=2).missing() == []
        assert contents(cache) == before

    def test_but_not_over_the_shards_of_another_cache(self, cache: Path) -> None:
        (cache / "zarr.json").write_bytes(b"{}")
        with pytest.raises(FormatError, match="belongs to another cache"):
            open_writer(cache, num_views=2, teacher={"tensors": "ef" * 32})
        with pytest.raises(IdentityError, match="belongs to another plan"):
            open_writer(cache, num_views=1)


def test_logs_are_kept_apart(cache: Path) -> None:
    before = contents(cache)
    writer = open_writer(cache, num_views=2)
    writer.write_log("rank0", {"seconds": 3.5})
    (cache / "log" / "torn.json").write_bytes(b"{")
    assert read_logs(str(cache)) == {"rank0": {"seconds": 3.5}}
    assert contents(cache) == before and verify(cache).ok


def test_records_of_zeros_are_stored_and_unused_slots_are_not(tmp_path: Path) -> None:
    writer = make_cache(tmp_path / "cache", num_images=4)
    shard = next(
        one for one in ShardTable(writer.index, 3).shards if len(writer.records_of(one)) < 3
    )
    for array in writer.manifest.arrays[shard.bucket]:
        raw = (tmp_path / "cache" / object_key(shard, array)).read_bytes()
        chunks_at(chunk_table(raw, 3), np.arange(len(writer.records_of(shard))))
