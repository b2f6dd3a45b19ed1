"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

_LINE_EVERY_SEC = 30.0


class Progress:
    """Counts bytes; use as a context manager.

    Args:
        what: names the work.
        total_bytes: of all the work.
        shown: False for silence.
    """

    def __init__(self, what: str, total_bytes: int, *, shown: bool) -> None:
        self._what, self._total, self._done = what, total_bytes, 0
        self._start = self._last_line = time.monotonic()
        self._lines = shown and not sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        if shown and not self._lines:
            self._bar = tqdm(
                desc=what, total=total_bytes, unit="B", unit_scale=True, dynamic_ncols=True
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, num_bytes: int) -> None:
        """Count bytes as done."""
        self._done += num_bytes
        if self._bar is not None:
            self._bar.update(num_bytes)
        now = time.monotonic()
        if self._lines and now - self._last_line >= _LINE_EVERY_SEC:
            self._last_line = now
            rate = self._done / (now - self._start)
            left = (self._total - self._done) / max(rate, 1.0)
            print(
                f"{self._what}: {self._done / max(self._total, 1):.0%},"
                f" {rate / 1e6:.0f} MB/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
