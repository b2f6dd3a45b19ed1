"""Progress of a dump, whichever rank wrote the records."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dataset.progress import Progress

# Asking the store what is missing lists its commits: not after every shard.
_COUNT_EVERY_SEC = 10.0


class DumpProgress:
    """Shows records done, their rate and the time left; on the first rank of each machine.

    With several ranks the store is asked now and then, so that the work of all of them counts.
    """

    def __init__(
        self, total: int, *, shown: bool, count_missing: Callable[[], int] | None = None
    ) -> None:
        """Args:

        total: records to write.
        shown: whether this rank shows anything.
        count_missing: asks the store for the records that no rank has written yet; None when
            this is the only rank.
        """
        self._total = total
        self._count_missing = count_missing
        self._shown_done = 0
        self._lock = threading.Lock()
        self._last_count = time.monotonic()
        self._progress = Progress("dump", total=total, unit="records") if shown else None

    def update(self, count: int) -> None:
        """Count records that this rank has written. Threads may call this."""
        if self._progress is None:
            return
        with self._lock:
            if self._count_missing is None:
                self._show(self._shown_done + count)
            elif time.monotonic() - self._last_count >= _COUNT_EVERY_SEC:
                self._last_count = time.monotonic()
                self._show(self._total - self._count_missing())

    def close(self) -> None:
        """Finish the bar."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)

    def _show(self, done: int) -> None:
        assert self._progress is not None
        self._progress.update(done - self._shown_done)
        self._shown_done = done
