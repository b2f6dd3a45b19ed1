"""Notes that running ranks leave under `log/` in the store, outside every comparison.

They hold what commits must not: times, hosts, rates. `status` reads them.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from dataclasses import asdict, dataclass

from storage import CacheError, CacheWriter
from storage.layout import LOG
from storage.location import Location

from .ranks import Rank

logger = logging.getLogger(__name__)

_PREFIX = "dump-"
_WRITE_EVERY_SEC = 15.0


@dataclass(frozen=True, kw_only=True)
class RankNote:
    """What one rank did so far.

    Attributes:
        rank, world_size, host: who.
        started, updated: seconds since the epoch.
        shards, records: what it committed.
        ended: whether it has stopped by itself.
    """

    rank: int
    world_size: int
    host: str
    started: float
    updated: float
    shards: int
    records: int
    ended: bool

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / max(self.updated - self.started, 1e-9)


class RunLog:
    """Keeps this rank's note up to date. A note that cannot be written stops no dump."""

    def __init__(self, writer: CacheWriter, rank: Rank) -> None:
        """Args: the cache, and who is writing."""
        self._writer = writer
        self._rank = rank
        self._host = socket.gethostname()
        self._started = time.time()
        self._last_write = 0.0
        self._name = f"{_PREFIX}{int(self._started * 1000)}-rank{rank.number}"

    def update(self, shards: int, records: int, *, ended: bool = False) -> None:
        """Note what is committed, unless the last note is recent."""
        now = time.time()
        if now - self._last_write < _WRITE_EVERY_SEC and not ended:
            return
        self._last_write = now
        note = RankNote(
            rank=self._rank.number,
            world_size=self._rank.world_size,
            host=self._host,
            started=self._started,
            updated=now,
            shards=shards,
            records=records,
            ended=ended,
        )
        try:
            self._writer.write_log(self._name, asdict(note))
        except (CacheError, OSError) as error:
            logger.warning("could not write the log: %s", error)


def read_notes(location: Location) -> list[RankNote]:
    """Read the notes of all ranks that ever worked on a store, the oldest first."""
    keys = [key for key in location.sizes(LOG) if key.startswith(f"{LOG}/{_PREFIX}")]
    notes = []
    for key in keys:
        try:
            notes.append(RankNote(**json.loads(location.get(key) or b"")))
        except (ValueError, TypeError):
            # Cut short by a crash, or of another version: a lost rate, no lost record.
            logger.warning("%s/%s is not readable", location, key)
    return sorted(notes, key=lambda note: note.started)
