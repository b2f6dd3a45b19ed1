"""Notes that running ranks leave under `log/` in the store, outside every comparison.

They hold what commits must not: times, hosts, rates. `status` reads them.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from storage import CacheError, CacheWriter, read_logs
from storage.keeper import Keeper

from .ranks import Rank

logger = logging.getLogger(__name__)

_PREFIX = "dump-"
_CONFIG = "config"
_WRITE_EVERY_SEC = 15.0
# Of anything that is counted, and of seconds since the epoch (in the year 5138).
_MAX_COUNT, _MAX_TIME = 1 << 40, 1e11


@dataclass(frozen=True, kw_only=True)
class RankNote:
    """What one rank did so far.

    Attributes:
        rank, world_size, host: who.
        started, updated: seconds since the epoch, both by the clock of the last update.
        shards, records: what it committed.
        ended: whether it has stopped by itself.

    Raises:
        ValueError: a value that no rank can have noted.
    """

    rank: int
    world_size: int
    host: str
    started: float
    updated: float
    shards: int
    records: int
    ended: bool

    def __post_init__(self) -> None:
        counts = (self.rank, self.world_size, self.shards, self.records)
        if not all(type(count) is int and 0 <= count <= _MAX_COUNT for count in counts):
            raise ValueError(f"rank, world size, shards or records: {counts}")
        times = (self.started, self.updated)
        if not all(type(time) in (int, float) and 0 <= time <= _MAX_TIME for time in times):
            raise ValueError(f"times: {times}")
        if self.updated < self.started:
            raise ValueError(f"updated before it started: {times}")
        if not (isinstance(self.host, str) and self.host.isprintable() and len(self.host) < 300):
            raise ValueError(f"host: {self.host!r:.100}")
        if type(self.ended) is not bool:
            raise ValueError(f"ended: {self.ended!r:.100}")

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / max(self.updated - self.started, 1e-9)


class RunLog:
    """Counts what this rank has committed, and keeps its note up to date in a thread.

    A context manager: leaving it notes that the rank has ended. A note that cannot be written
    stops no dump.
    """

    def __init__(self, writer: CacheWriter, rank: Rank) -> None:
        """Args: the cache, and who is writing."""
        self._writer = writer
        self._rank = rank
        self._host = socket.gethostname()
        self._started = time.monotonic()
        self._name = f"{_PREFIX}{int(time.time() * 1000)}-rank{rank.number}"
        self._lock = threading.Lock()
        self._keeper = Keeper(self._note, every_sec=_WRITE_EVERY_SEC, name="log")
        self.shards = self.records = 0

    def __enter__(self) -> RunLog:
        self._note()  # a rank is alive before its first shard is done
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.stop()
        self._note(ended=True)

    def note_config(self, text: str) -> None:
        """Leave the resolved config beside the cache that it describes."""
        self._write(_CONFIG, {"yaml": text})

    def count(self, records: int) -> None:
        """Count a shard that was committed. Threads may call this."""
        with self._lock:
            self.shards += 1
            self.records += records

    def _note(self, *, ended: bool = False) -> None:
        # The clock may be set while a rank runs: only what has passed since its start is certain.
        now = time.time()
        started = max(now - (time.monotonic() - self._started), 0.0)
        note = RankNote(
            rank=self._rank.number,
            world_size=self._rank.world_size,
            host=self._host,
            started=started,
            updated=now,
            shards=self.shards,
            records=self.records,
            ended=ended,
        )
        self._write(self._name, asdict(note))

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        try:
            self._writer.write_log(name, entry)
        except (CacheError, OSError) as error:
            logger.warning("could not write the log: %s", error)


def read_notes(location: str) -> list[RankNote]:
    """Read the notes of all ranks that ever worked on a store, the oldest first."""
    notes = []
    for name, entry in read_logs(location).items():
        if name.startswith(_PREFIX):
            try:
                notes.append(RankNote(**entry))
            except (TypeError, ValueError):
                logger.warning("%s: the note %a is none of this version", location, name)
    return sorted(notes, key=lambda note: note.started)
