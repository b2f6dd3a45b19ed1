"""How far a dump is: what is committed, what is missing, and how fast it goes."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import timedelta

from storage import CacheReader

from .ranks import LEASE_SEC
from .runlog import RankNote, read_notes

# What is shown at most, a century; a note can make any rate.
_MOST_SEC = 3.2e9


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of a cache; `str` gives lines, `to_json` the numbers.

    Attributes:
        location, preset: of the cache.
        views, records, shards: what its plan holds.
        done_records, done_shards: what is committed.
        excluded: images that are left out, of which committed shards may lack the records.
        active_ranks: ranks that were heard of lately.
        silent_ranks: ranks that have not said that they ended, and were not heard of lately
            either: killed, and not started again since, there or elsewhere. Empty for a complete
            cache.
        rate: records a second of the active ranks together, else of the last rank that wrote any;
            None if none did.
        seconds_left: at that rate; None if nobody is at work.
    """

    location: str
    preset: str
    views: int
    records: int
    shards: int
    done_records: int
    done_shards: int
    excluded: int
    active_ranks: int
    silent_ranks: tuple[str, ...]
    rate: float | None
    seconds_left: float | None

    @property
    def complete(self) -> bool:
        """Whether every planned record is committed."""
        return self.done_shards == self.shards

    def to_json(self) -> str:
        """The status as one JSON object."""
        return json.dumps({**asdict(self), "complete": self.complete}, indent=1)

    def __str__(self) -> str:
        share = self.done_records / self.records
        lines = [
            f"{self.location}: preset {self.preset}, {self.views} views",
            f"done:    {self.done_records:,} of {self.records:,} records ({share:.1%}), "
            f"{self.done_shards:,} of {self.shards:,} shards",
            f"missing: {self.records - self.done_records:,} records, "
            f"{self.shards - self.done_shards:,} shards",
        ]
        if self.excluded:
            lines.append(f"left out: {self.excluded} images (DATASET.EXCLUDE)")
        if not self.complete:
            lines.append(f"ranks:   {self.active_ranks or 'nobody'} at work")
            lines += [f"silent:  {rank}" for rank in self.silent_ranks]
        if self.rate is not None:
            lines.append(f"rate:    {self.rate:.1f} records/s")
        if self.seconds_left is not None:
            lines.append(f"left:    {_duration(self.seconds_left)}")
        return "\n".join(lines)


def read_status(location: str) -> Status:
    """Look into a cache.

    Raises:
        FileNotFoundError: there is no cache.
        CacheError: its metadata is damaged, or it cannot be reached.
    """
    reader = CacheReader(location)
    table = reader.table
    missing = reader.missing()
    missing_records = sum(len(table.records_of(shard)) for shard in missing)
    notes = read_notes(location)
    active = [note for note in notes if _is_active(note)]
    wrote = [note for note in notes if note.records]
    rate = sum(note.rate for note in active or wrote[-1:]) or None
    return Status(
        location=location,
        preset=reader.manifest.preset,
        views=reader.index.num_views,
        records=len(reader),
        shards=len(table),
        done_records=len(reader) - missing_records,
        done_shards=len(table) - len(missing),
        excluded=len(reader.manifest.excluded),
        active_ranks=len(active),
        silent_ranks=_silent(notes) if missing else (),
        rate=rate,
        seconds_left=missing_records / rate if active and rate else None,
    )


def _silent(notes: list[RankNote]) -> tuple[str, ...]:
    """Describe the ranks whose note is neither ended nor fresh, and whose place nobody took since.

    Machines that start one command each number their ranks alike. So a note takes the place of one
    alone, and of none that was still heard of when it started.

    Args:
        notes: the oldest first.
    """
    silent: list[RankNote] = []
    for note in notes:
        before = [one for one in silent if _may_follow(note, one)]
        if before:
            # A scheduler may start a rank again on another machine.
            silent.remove(max(before, key=lambda one: one.host == note.host))
        if not note.ended and not _is_active(note):
            silent.append(note)
    return tuple(
        f"rank {note.rank} of {note.world_size} on {note.host}, for "
        f"{_duration(time.time() - note.updated)}"
        for note in silent
    )


def _may_follow(note: RankNote, before: RankNote) -> bool:
    same = (note.rank, note.world_size) == (before.rank, before.world_size)
    return same and before.updated < note.started


def _is_active(note: RankNote) -> bool:
    # A clock that is ahead by more makes no dead rank live.
    return not note.ended and abs(time.time() - note.updated) < 2 * LEASE_SEC


def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=round(min(max(seconds, 0.0), _MOST_SEC)))
