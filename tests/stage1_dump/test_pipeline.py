"""The parts that overlap in a dump: what is taken when, how much at once, and where time goes."""

import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stage1_dump.__main__ import main
from stage1_dump.compute import BatchComputer
from stage1_dump.dump import DumpJob
from stage1_dump.feed import ShardFeed
from stage1_dump.profile import FORWARD, IMAGES, WRITE, Profile
from stage1_dump.ranks import Rank
from stage1_dump.runlog import RunLog, read_notes
from stage1_dump.status import read_status
from stage1_dump.writing import ShardWriters
from storage import Array, CacheReader, CacheWriter, Field, Geometry, ShardId
from storage.schema import PIXEL_FIELDS, RECORD
from tests.stage1_dump.conftest import Configure
from tests.stage1_dump.helpers import dump, store_bytes

CPU = torch.device("cpu")
SMALL, LARGE = "0064x0096", "0800x1344"
GEOMETRIES = [Geometry(*map(int, name.split("x")), ((1, 1),)) for name in (SMALL, LARGE)]
# Two full shards and a last one of either size; the plan begins with the small bucket.
RECORDS = {ShardId(bucket, number): count for bucket in (SMALL, LARGE)
           for number, count in enumerate((4, 4, 1))}  # fmt: skip


@dataclass
class FakeWriter:
    """Knows how many records each shard has, and which are committed."""

    committed: set[ShardId] = field(default_factory=set)

    def planned_of(self, shard: ShardId) -> np.ndarray:
        return np.arange(RECORDS[shard])

    def missing(self) -> list[ShardId]:
        return [shard for shard in RECORDS if shard not in self.committed]


@dataclass
class FakeClaims:
    """Gives every shard but those of other ranks, and remembers what was asked for."""

    others: set[ShardId] = field(default_factory=set)
    asked: list[ShardId] = field(default_factory=list)

    def take(self, shard: ShardId) -> bool:
        self.asked.append(shard)
        return shard not in self.others


def feed_of(writer: FakeWriter, claims: FakeClaims, rank: Rank) -> ShardFeed:
    arguments: Any = (writer, claims, rank, GEOMETRIES)
    feed = ShardFeed(*arguments, batch=3, profile=Profile())
    feed.offer(writer.missing())
    return feed


def taken(feed: ShardFeed) -> list[ShardId]:
    batches = list(feed)
    shards = list(feed.claimed)
    assert [len(batch) for batch in batches] == [
        size for shard in shards for size in ([3, 1] if RECORDS[shard] == 4 else [1])
    ]
    return shards


def test_costly_shards_come_first_and_rests_last() -> None:
    shards = taken(feed_of(FakeWriter(), FakeClaims(), Rank()))
    assert shards == [
        ShardId(LARGE, 0), ShardId(LARGE, 1), ShardId(LARGE, 2),
        ShardId(SMALL, 0), ShardId(SMALL, 1), ShardId(SMALL, 2),
    ]  # fmt: skip


def test_every_rank_gets_large_and_small_shards_and_then_helps() -> None:
    orders = [
        taken(feed_of(FakeWriter(), FakeClaims(), Rank(number=n, world_size=2))) for n in range(2)
    ]
    assert [set(order) for order in orders] == [set(RECORDS)] * 2
    shares = [{(s.bucket, RECORDS[s]) for s in order[:3]} for order in orders]
    assert all({bucket for bucket, _ in share} == {LARGE, SMALL} for share in shares)
    assert not set(orders[0][:3]) & set(orders[1][:3])


def test_shards_of_others_that_were_done_meanwhile_are_not_asked_for() -> None:
    writer, claims = FakeWriter(), FakeClaims()
    feed = feed_of(writer, claims, Rank(number=0, world_size=2))
    writer.committed = set(RECORDS) - {ShardId(SMALL, 2)}
    taken(feed)
    assert len(claims.asked) == 3 + 1 and claims.asked[-1] == ShardId(SMALL, 2)


def test_a_shard_that_another_rank_holds_is_passed_over() -> None:
    claims = FakeClaims(others={ShardId(LARGE, 0), ShardId(SMALL, 1)})
    shards = taken(feed_of(FakeWriter(), claims, Rank()))
    assert set(shards) == set(RECORDS) - claims.others


def test_one_shard_is_claimed_ahead_and_no_more() -> None:
    claims = FakeClaims()
    batches = iter(feed_of(FakeWriter(), claims, Rank()))
    next(batches)
    deadline = time.monotonic() + 10
    while len(claims.asked) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(claims.asked) == 2
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_writers", [1, 3])
def test_no_more_shards_are_in_memory_than_writers_and_one(num_writers: int) -> None:
    may_end = threading.Event()
    begun: list[ShardId] = []

    def write(shard: ShardId, arrays: object) -> None:
        begun.append(shard)
        assert may_end.wait(10)

    arrays: Any = None
    shards = list(RECORDS)[: num_writers + 1]
    with ShardWriters(write, Profile(), CPU, num_writers) as writers:
        for shard in shards[:-1]:
            writers.submit(shard, arrays)
        last = threading.Thread(target=writers.submit, args=(shards[-1], arrays))
        last.start()
        last.join(timeout=0.1)
        assert last.is_alive() and len(begun) == num_writers
        may_end.set()
        last.join(timeout=10)
        writers.finish()
    assert set(begun) == set(shards)


def test_what_a_writer_raises_reaches_the_dump() -> None:
    def write(shard: ShardId, arrays: object) -> None:
        raise OSError("the disk is gone")

    arrays: Any = None
    with ShardWriters(write, Profile(), CPU, 2) as writers:
        writers.submit(ShardId(SMALL, 0), arrays)
        with pytest.raises(OSError, match="the disk is gone"):
            writers.finish()


def test_a_writer_thread_uses_the_gpu_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread begins with GPU 0, which may be another rank's."""
    chosen: dict[int, torch.device] = {}
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: chosen.update({threading.get_ident(): device})
    )
    wrote: list[int] = []
    arrays: Any = None
    device = torch.device("cuda", 3)
    with ShardWriters(
        lambda shard, arrays: wrote.append(threading.get_ident()), Profile(), device, 2
    ) as writers:
        writers.submit(ShardId(SMALL, 0), arrays)
        writers.finish()
    assert chosen == {wrote[0]: device} and wrote[0] != threading.get_ident()


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        # Three shards of 4 records of 1,232 bytes.
        ("cpu", "up to 14.8 kB of them in memory"),
        # 4 times 100, 300 and 60 bytes take 512, 2,048 and 256; pixels are no device's.
        ("cuda", "up to 8.4 kB of them in page-locked memory"),
    ],
)
def test_what_will_be_in_memory_is_announced_as_it_lies_there(
    device: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    job: Any = DumpJob.__new__(DumpJob)
    job._num_writers = 2
    job._rank, job._writer = Rank(), SimpleNamespace(records_of=lambda _: range(4))
    sizes = {"a": 100, "b": 300, "detections": 60}
    first, second, small = (Field(name, (size,), "uint8") for name, size in sizes.items())
    arrays = [Array("a", [first]), Array("b", [second]), Array(RECORD, [small, *PIXEL_FIELDS])]
    job._writer.manifest = SimpleNamespace(arrays={SMALL: arrays})
    job._teacher = SimpleNamespace(device=torch.device(device))
    with caplog.at_level("INFO"):
        job._announce([ShardId(SMALL, number) for number in range(5)], 20)
    assert expected in caplog.text


@pytest.fixture
def encoding_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU encode each batch after the forward of the next, as a GPU does."""

    class Behind(BatchComputer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._num_ahead = 1

    monkeypatch.setattr("stage1_dump.dump.BatchComputer", Behind)


@pytest.mark.usefixtures("encoding_behind")
def test_encoding_behind_the_next_forward_changes_no_byte(
    reference: Path, configure: Configure
) -> None:
    config = configure(VIEWS={"NUM": 2})
    dump(config)
    assert store_bytes(config.with_suffix("")) == store_bytes(reference)


@pytest.mark.usefixtures("encoding_behind")
@pytest.mark.parametrize("image", ["0002.png", "0007.png", "0040.png"])
def test_encoding_behind_leaves_out_the_shard_of_an_unreadable_image_alone(
    reference: Path, configure: Configure, images_folder: Path, tmp_path: Path, image: str
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images_folder, folder)
    (folder / "images" / image).write_bytes(b"none")
    config = configure(VIEWS={"NUM": 2}, DATASET={"FOLDER": str(folder)})
    assert {str(failure.image_id) for failure in dump(config).failures} == {image[:4].lstrip("0")}
    written, whole = store_bytes(config.with_suffix("")), store_bytes(reference)
    assert written.items() < whole.items()
    missing = [key for key in whole.keys() - written.keys() if key.startswith("commits/")]
    assert len(missing) in (1, 2)


@pytest.mark.gpu
def test_a_dump_on_a_gpu_is_the_same_profiled_or_not_and_passes_the_check(
    configure: Configure,
) -> None:
    device = {"MODEL": {"DEVICE": "cuda"}, "DATALOADER": {"NUM_WORKERS": 2}}
    first, second = configure("first", **device), configure("second", **device)
    assert main(["run", "--config-file", str(first)]) == 0
    assert main(["run", "--profile", "--config-file", str(second)]) == 0
    assert store_bytes(first.with_suffix("")) == store_bytes(second.with_suffix(""))
    assert main(["check", "--sample", "100", "--config-file", str(first)]) == 0


def test_seconds_count_for_their_step_in_every_thread() -> None:
    profile = Profile()

    def work() -> None:
        with profile.step(WRITE):
            time.sleep(0.02)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    with profile.step(IMAGES):
        time.sleep(0.03)
    for thread in threads:
        thread.join()
    shares = profile.shares(elapsed_sec=0.06)
    assert shares.background[WRITE] >= 0.04 and shares.main[IMAGES] >= 0.03
    assert shares.main[FORWARD] == 0
    assert shares.bottleneck == IMAGES
    assert "bottleneck: waiting for images (raise DATALOADER.NUM_WORKERS" in str(shares)


def test_the_profile_of_a_dump_covers_its_time(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--profile", "--config-file", str(configure())]) == 0
    lines = capsys.readouterr().out.splitlines()
    share = {
        line.partition("  ")[2]: float(line.partition("%")[0]) for line in lines if "%" in line
    }
    main_thread = {name: value for name, value in share.items() if "beside" not in name}
    assert sum(main_thread.values()) == pytest.approx(100, abs=1)
    assert share["teacher forward"] > 0 and share["beside it: compressing, writing, committing"] > 0
    assert lines[-1].startswith("bottleneck: ")


def test_a_rank_is_alive_before_its_first_shard_and_until_it_ends(
    reference: Path, tmp_path: Path
) -> None:
    reader = CacheReader(reference)
    store = tmp_path / "store"
    writer = CacheWriter(store, reader.manifest, reader.index)
    with RunLog(writer, Rank(number=1, world_size=2)) as log:
        deadline = time.monotonic() + 10
        while not read_notes(str(store)) and time.monotonic() < deadline:
            time.sleep(0.005)
        status = read_status(str(store))
        assert (status.active_ranks, status.rate) == (1, None)
        log.count(3)
    (note,) = read_notes(str(store))
    assert (note.ended, note.shards, note.records) == (True, 1, 3)
    assert read_status(str(store)).active_ranks == 0


def test_a_clock_that_is_set_back_stops_no_rank_and_changes_no_rate(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = CacheReader(reference)
    store = tmp_path / "store"
    start = time.monotonic()
    with RunLog(CacheWriter(store, reader.manifest, reader.index), Rank()) as log:
        log.count(30)
        monkeypatch.setattr(time, "time", lambda: 1e9)
        monkeypatch.setattr(time, "monotonic", lambda: start + 10)
    (note,) = read_notes(str(store))
    assert note.ended and note.updated == 1e9
    assert note.rate == pytest.approx(3, rel=0.1)


def test_status_names_ranks_that_were_killed_and_not_started_again(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = CacheReader(reference)
    store = tmp_path / "store"
    writer = CacheWriter(store, reader.manifest, reader.index)
    for number in (0, 0, 1):
        with RunLog(writer, Rank(number=number, world_size=2)) as log:
            # What a killed rank cannot do.
            monkeypatch.setattr(log, "_note", lambda *, ended=False: None)
            RunLog._note(log)
        time.sleep(0.002)
    assert read_status(str(store)).active_ranks == 3
    long_after = time.time() + 300
    monkeypatch.setattr(time, "time", lambda: long_after)
    status = read_status(str(store))
    assert status.active_ranks == 0 and len(status.silent_ranks) == 2
    assert "silent:  rank 1 of 2 on " in str(status) and ", for 0:05:00" in str(status)
    assert "ranks:   nobody at work" in str(status)
    with RunLog(writer, Rank(number=1, world_size=2)):
        pass
    (silent,) = read_status(str(store)).silent_ranks
    assert silent.startswith("rank 0 of 2 on ")
