"""Claims: writers share a plan without mixing two results in one shard."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage import ClaimLostError, StoreAccessError
from storage.claims import Claims, live_claims
from storage.exclusive import METADATA, claimed_metadata
from storage.layout import claim_folder, commit_key
from storage.local import Listing
from storage.location import Location
from storage.schema import ShardId
from tests.storage.cases import (
    FIRST,
    NewLocation,
    clock,
    contents,
    fill,
    make_arrays,
    make_cache,
    open_writer,
)


def test_one_of_two_writers_gets_a_shard(new_location: NewLocation) -> None:
    place = new_location()
    one, other = open_writer(place), open_writer(place)
    shard = one.missing()[0]
    assert one.claim(shard, "one", 60)
    assert not other.claim(shard, "other", 60)
    with pytest.raises(ClaimLostError, match="claimed by somebody else"):
        other.write(shard, make_arrays(other, shard))
    one.release(shard)
    assert other.claim(shard, "other", 60)
    assert not one.claim(shard, "one", 60)


def test_a_claim_can_be_prolonged_by_its_owner(new_location: NewLocation) -> None:
    writer = open_writer(new_location())
    shard = writer.missing()[0]
    assert all(writer.claim(shard, "one", 60) for _ in range(3))
    assert len(writer.location.sizes(claim_folder(shard))) == 1


def test_an_expired_claim_is_taken_over_and_the_first_owner_may_not_commit(
    new_location: NewLocation,
) -> None:
    place = new_location()
    slow, quick = open_writer(place), open_writer(place)
    shard = slow.missing()[0]
    assert slow.claim(shard, "slow", 0.01)
    time.sleep(0.02)
    assert quick.claim(shard, "quick", 60)
    with pytest.raises(ClaimLostError):
        slow.write(shard, make_arrays(slow, shard))
    slow.release(shard)  # of no effect: it is not his any more
    assert not slow.claim(shard, "slow", 60)
    quick.write(shard, make_arrays(quick, shard))
    quick.release(shard)
    assert shard not in slow.missing()
    assert place.sizes("claims") == {}


def test_a_claim_lost_while_writing_leaves_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = open_writer(tmp_path / "cache"), open_writer(tmp_path / "cache")
    shard = slow.missing()[0]
    assert slow.claim(shard, "slow", 0.05)
    sync = Location.sync

    def slow_sync(self: Location, keys: Any) -> None:
        sync(self, keys)
        time.sleep(0.06)
        assert quick.claim(shard, "quick", 60)

    monkeypatch.setattr(Location, "sync", slow_sync)
    with pytest.raises(ClaimLostError):
        slow.write(shard, make_arrays(slow, shard))
    assert slow.location.get(commit_key(shard)) is None


def test_a_claim_is_looked_up_where_clocks_that_differ_by_half_its_time_could_have_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = (Claims(Location(tmp_path)) for _ in range(2))
    clock = SimpleNamespace(time=lambda: now[0])
    monkeypatch.setattr("storage.claims.time", clock)
    now = [1000.0]
    assert slow.take(FIRST, "slow", 60)
    now[0] = 1061.0  # by the clock of another machine
    assert quick.take(FIRST, "quick", 60)
    now[0] = 1029.0
    assert slow.holds(FIRST, look=False) and not slow.holds(FIRST)
    now[0] = 1031.0
    assert not slow.holds(FIRST, look=False)


def test_an_expired_claim_that_nobody_took_is_prolonged(new_location: NewLocation) -> None:
    writer = open_writer(new_location())
    shard = writer.missing()[0]
    assert writer.claim(shard, "slow", 0.01)
    time.sleep(0.02)
    writer.write(shard, make_arrays(writer, shard))
    assert shard not in writer.missing()


def test_prolonging_in_a_thread_never_makes_a_claim_look_lost(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "cache")
    shard = writer.missing()[0]
    assert writer.claim(shard, "one", 60)
    stop = threading.Event()

    def prolong() -> None:
        while not stop.is_set():
            assert writer.claim(shard, "one", 60)

    keeper = threading.Thread(target=prolong)
    keeper.start()
    try:
        assert all(writer._claims.holds(shard) for _ in range(100))
    finally:
        stop.set()
        keeper.join()


def test_contenders_for_an_expired_claim_do_not_both_get_it(new_location: NewLocation) -> None:
    place = new_location()
    writer = open_writer(place)
    shard = writer.missing()[0]
    assert writer.claim(shard, "dead", 0.0)
    contenders = [Claims(place) for _ in range(5)]
    assert sum(one.take(shard, str(i), 60) for i, one in enumerate(contenders)) == 1
    assert sum(one.holds(shard) for one in contenders) == 1


def test_an_unreadable_claim_counts_as_expired(new_location: NewLocation) -> None:
    writer = open_writer(new_location())
    shard = writer.missing()[0]
    writer.location.put(f"{claim_folder(shard)}/000004.json", b"\x00")
    assert writer.claim(shard, "one", 60)


# What may lie in the place of a claim; none of it may keep a shard from being taken.
ODD_CLAIMS = {
    "nothing": b"", "no object": b"[]", "no text": b"\xff", "deep": b"[" * 100_000,
    "long": b'{"owner": "' + b"x" * 5000 + b'", "token": "1", "expires": 9e9}',
    "no time": b'{"owner": "a", "token": "1", "expires": "soon"}',
    "infinity": b'{"owner": "a", "token": "1", "expires": "inf"}',
    "NaN": b'{"owner": "a", "token": "1", "expires": "nan"}',
    "too large": b'{"owner": "a", "token": "1", "expires": 1' + b"0" * 400 + b"}",
    "owner": b'{"owner": [1], "token": "1", "expires": 9e9}',
    "no owner": b'{"token": "1", "expires": 9e9}',
    "the next century": b'{"owner": "a", "token": "1", "expires": 5e9}',
}  # fmt: skip


@pytest.mark.parametrize("content", ODD_CLAIMS.values(), ids=ODD_CLAIMS)
def test_a_claim_of_odd_content_holds_nobody_up(new_location: NewLocation, content: bytes) -> None:
    writer = open_writer(new_location())
    shard = writer.missing()[0]
    for number in (0, 7):
        writer.location.put(f"{claim_folder(shard)}/{number:06d}.json", content)
    writer.location.put(f"{claim_folder(METADATA)}/000000.json", content)
    assert list(live_claims(writer.location)) == []
    other = open_writer(writer.location, num_views=2)  # writes metadata
    assert writer.claim(shard, "one", 60)
    assert not other.claim(shard, "other", 60)


def test_things_that_are_no_claims_hold_nobody_up(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "cache")
    shard = writer.missing()[0]
    folder = tmp_path / "cache" / claim_folder(shard)
    (folder / "000000.json").mkdir(parents=True)
    (folder / "000001.json").symlink_to(folder / "000001.json")
    (folder / "000002.json/inner").mkdir(parents=True)
    os.mkfifo(folder / "000003.json")
    for name in ("3.json", "٣٣٣٣٣٣.json", "x.json", "000009.txt", "9" * 200 + ".json"):
        (folder / name).write_bytes(b"{}")
    assert writer.claim(shard, "one", 60)
    assert writer.holder(shard) is not None
    assert [(name, claim.generation) for name, claim in live_claims(writer.location)] == [
        (str(shard), 4)
    ]
    writer.write(shard, make_arrays(writer, shard))
    writer.release(shard)


def test_a_claim_of_a_clock_that_is_ahead_counts_as_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, right = (Claims(Location(tmp_path)) for _ in range(2))
    now = [1000.0]
    monkeypatch.setattr("storage.claims.time", SimpleNamespace(time=lambda: now[0]))
    now[0] = 1000.0 + 31.0  # more than half of the time that it is given
    assert ahead.take(FIRST, "ahead", 60)
    now[0] = 1000.0
    assert right.take(FIRST, "right", 60)
    assert right.holds(FIRST) and not ahead.holds(FIRST)
    right.release(FIRST)
    now[0] = 1000.0 + 29.0
    assert ahead.take(FIRST, "ahead", 60)
    now[0] = 1000.0
    assert not right.take(FIRST, "right", 60)


@pytest.mark.parametrize("seconds", [-1, 60.1, float("inf"), float("nan")])
def test_no_claim_is_given_for_longer_than_others_wait(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to 60"):
        Claims(Location(tmp_path)).take(FIRST, "one", seconds)


def test_who_waits_for_the_metadata_says_for_whom_and_until_when(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.exclusive._LEASE_SEC", 0.5)
    place, dead = Location(tmp_path), Claims(Location(tmp_path))
    assert dead.take(METADATA, "host 7", 0.5)
    with claimed_metadata(place):
        pass
    (line,) = [record.message for record in caplog.records]
    assert re.fullmatch(rf"{tmp_path}: waiting for the metadata, which another job writes: held by"
                        r" host 7 until \d\d:\d\d:\d\d \(for [01] s\)", line)  # fmt: skip


def test_a_store_that_lists_claims_by_another_name_is_refused_and_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, ends = Location.listing, [0.0]

    def renamed(self: Location, folder: str = "") -> Listing:
        return Listing({f"other/{key}": size for key, size in listing(self, folder).sizes.items()})

    monkeypatch.setattr("storage.exclusive.time", clock(ends.append))
    monkeypatch.setattr(Location, "listing", renamed)
    with (
        pytest.raises(StoreAccessError, match=r"claims/metadata/00000: a claim .* is not listed"),
        claimed_metadata(Location(tmp_path)),
    ):
        pass
    assert 30 < ends[-1] < 60


def test_a_holder_in_sight_is_waited_for_however_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Claims(Location(tmp_path))
    assert holder.take(METADATA, "holder", 60)

    def release_late(now: float) -> None:
        if now > 300:
            holder.release(METADATA)

    monkeypatch.setattr("storage.exclusive.time", clock(release_late))
    with claimed_metadata(Location(tmp_path)):
        assert not holder.holds(METADATA)


def test_a_claim_that_once_could_not_be_renewed_is_renewed_the_next_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.exclusive._LEASE_SEC", 0.3)
    take, failed, renewed = Claims.take, threading.Event(), threading.Event()

    def take_once_in_vain(self: Claims, shard: ShardId, owner: str, seconds: float) -> bool:
        if threading.current_thread() is threading.main_thread():
            return take(self, shard, owner, seconds)
        if not failed.is_set():
            failed.set()
            raise OSError(errno.ESTALE, "stale file handle")
        renewed.set()
        return take(self, shard, owner, seconds)

    with monkeypatch.context() as patch, claimed_metadata(Location(tmp_path)):
        patch.setattr(Claims, "take", take_once_in_vain)
        assert renewed.wait(10)
    assert any("stale file handle" in record.message for record in caplog.records)


def test_who_loses_a_claim_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.exclusive._LEASE_SEC", 0.3)
    with monkeypatch.context() as patch, claimed_metadata(Location(tmp_path)):
        asked = threading.Event()
        patch.setattr(Claims, "take", lambda *_: asked.set())
        assert asked.wait(10)
    assert any("another job has taken over metadata" in one.message for one in caplog.records)


def test_two_writers_share_a_plan(new_location: NewLocation) -> None:
    place, alone = new_location(), new_location()
    writers = [open_writer(place, num_views=2) for _ in range(2)]
    turn = 0
    while missing := writers[0].missing():
        writer = writers[turn % 2]
        shard = next(one for one in missing if writer.claim(one, f"rank{turn % 2}", 60))
        fill(writer, [shard])
        writer.release(shard)
        turn += 1
    make_cache(alone, num_views=2)
    assert contents(place) == contents(alone)


def test_metadata_is_written_by_one_at_a_time(new_location: NewLocation) -> None:
    place = new_location()
    inside, most = [0], [0]

    def work() -> None:
        with claimed_metadata(place):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert place.sizes("claims") == {}
