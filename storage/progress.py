"""Progress of long work on stderr: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")

LINE_EVERY_SEC = 30.0
# Asking how much others have done takes a listing of the store: not after every shard.
_ASK_EVERY_SEC = 10.0
# A bar for what takes no time would only flicker.
_BAR_AFTER_SEC = 0.5


class Progress:
    """Counts work done and shows it with rate and time left; use as a context manager.

    Threads may share one.

    Args:
        label: names the work.
        total: units of work in all.
        unit: name of the units; "B" shows sizes as kB, MB, GB.
        start: units that were done before, which the rate leaves out.
        shown: False for silence.
        count_done: where others do a part of the work: tells how many units are done by all of
            them. It is asked now and then, and what `update` is told does not count.
    """

    def __init__(
        self,
        label: str,
        *,
        total: int,
        unit: str,
        start: int = 0,
        shown: bool = True,
        count_done: Callable[[], int] | None = None,
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = self._start = start
        self._count_done = count_done
        self._began = self._last_line = self._last_count = monotonic()
        self._lock = threading.Lock()
        self._shown = shown
        self._bar: Any = None
        if shown and sys.stderr is not None and sys.stderr.isatty():  # None: closed by the shell
            from tqdm import tqdm  # here, since most commands end before they need it

            self._bar = tqdm(
                desc=label, total=total, initial=start, unit=unit if unit == "B" else f" {unit}",
                unit_scale=unit == "B", leave=False, dynamic_ncols=True, delay=_BAR_AFTER_SEC,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int = 1) -> None:
        """Add `count` units; a negative number takes back what must be done again."""
        if not self._shown:
            return
        with self._lock:
            now = monotonic()
            if self._count_done is not None:
                if now - self._last_count < _ASK_EVERY_SEC:
                    return
                self._last_count = now
                count = self._count_done() - self._done
            self._done += count
            if self._bar is not None:
                self._bar.update(count)
            elif now - self._last_line >= LINE_EVERY_SEC:
                self._last_line = now
                say(self._line(now))

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, and count each as done when the next one is asked for."""
        for item in items:
            yield item
            self.update()

    def say(self, message: str, file: TextIO | None = None) -> None:
        """Print a message, on stderr if nowhere else, without tearing the bar."""
        file = file or sys.stderr
        if self._bar is not None:
            self._bar.write(message, file=file)
        else:
            print(message, file=file, flush=True)

    def _line(self, now: float) -> str:
        unit = "" if self._unit == "B" else f" {self._unit}"
        line = f"{self._label}: {self._amount(self._done)} of {self._amount(self._total)}{unit}"
        rate = (self._done - self._start) / max(now - self._began, 1e-9)
        if rate > 0:
            left = timedelta(seconds=round(max(0, self._total - self._done) / rate))
            line += f", {self._amount(rate)} a second, {left} left"
        return line

    def _amount(self, value: float) -> str:
        if self._unit == "B":
            return format_bytes(value)
        return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def say(message: str) -> None:
    """Print on stderr, where there still is one: a terminal may be gone, a pipe closed."""
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def format_bytes(value: float) -> str:
    """Write a number of bytes with a decimal unit: 19336861798 becomes 19.3 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")
