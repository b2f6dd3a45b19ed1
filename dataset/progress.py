"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts work done and shows it on standard error, with rate and time left.

    Args:
        label: what is going on, one or two words.
        total: units of work in all.
        unit: name of one unit; "B" shows sizes as kB, MB, GB.
        start: units that were done before, which the rate leaves out.
    """

    def __init__(self, label: str, *, total: int, unit: str, start: int = 0) -> None:
        self._label = label
        self._total = total
        self._unit = unit
        self._done = self._start = start
        self._began = self._last_line = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            scaled = unit == "B"
            self._bar = tqdm(
                desc=label, total=total, initial=start, unit=unit, unit_scale=scaled, leave=False
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int) -> None:
        """Add `count` units."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(self._line(now), file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """Print a message without tearing the bar."""
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        rate = (self._done - self._start) / (now - self._began)
        line = f"{self._label}: {self._amount(self._done)} of {self._amount(self._total)}"
        if rate > 0:
            left = max(0.0, (self._total - self._done) / rate)
            line += f", {self._amount(rate)} a second, {left / 60:.1f} min left"
        return line

    def _amount(self, value: float) -> str:
        if self._unit != "B":
            return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
        return format_bytes(value)


def format_bytes(value: float) -> str:
    """Write a number of bytes with a decimal unit: 19336861798 becomes 19.3 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")
