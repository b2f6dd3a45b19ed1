"""Where the time of a dump goes, step by step, and which step holds the others up.

The steps of the main thread follow one another, so their shares of the elapsed time add up to one
with what is left over. The background steps run beside them: a rank waits for those only where the
main thread has a step that says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

IMAGES, FORWARD, ENCODE, COPY, WRITERS = "images", "forward", "encode", "copy", "writers"
CLAIM, WRITE = "claim", "write"

# What each step of the main thread is, and what to do when it is the bottleneck.
_MAIN = {
    IMAGES: ("waiting for images", "raise DATALOADER.NUM_WORKERS, or read from a faster disk"),
    FORWARD: ("teacher forward", "the device is as busy as it can be"),
    ENCODE: ("encoding and final boxes", "on the device; nothing to set"),
    COPY: ("copy to the host", "a preset with smaller records copies less"),
    WRITERS: ("waiting for writers", "raise CACHE.WRITERS; a faster store, or smaller records"),
}
_BACKGROUND = {
    CLAIM: "claiming shards",
    WRITE: "compressing, writing, committing",
}


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Seconds by step; `str` gives a table.

    Attributes:
        elapsed_sec: of the whole dump.
        main: step of the main thread to its seconds, in the order of the data.
        background: step to the seconds of all its threads together.
    """

    elapsed_sec: float
    main: dict[str, float]
    background: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The step in which the main thread spends most of its time."""
        return max(self.main, key=lambda step: self.main[step])

    def __str__(self) -> str:
        lines = [f"{self._share(seconds)}  {_MAIN[step][0]}" for step, seconds in self.main.items()]
        rest = max(0.0, self.elapsed_sec - sum(self.main.values()))
        lines.append(f"{self._share(rest)}  everything else")
        lines += [
            f"{self._share(seconds)}  beside it: {_BACKGROUND[step]}"
            for step, seconds in self.background.items()
        ]
        name, advice = _MAIN[self.bottleneck]
        lines.append(f"bottleneck: {name} ({advice})")
        return "\n".join(lines)

    def _share(self, seconds: float) -> str:
        return f"{seconds / max(self.elapsed_sec, 1e-9):6.1%}"


class Profile:
    """Adds up seconds by step. Threads may share it."""

    def __init__(self, device: torch.device | None = None) -> None:
        """Args:

        device: wait for this GPU at the end of every step of the main thread, so that the time of
            a kernel counts where it was launched; costs some of the overlap. None: do not wait.
        """
        self._waits = device is not None and device.type == "cuda"
        self._seconds = dict.fromkeys((*_MAIN, *_BACKGROUND), 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the time inside as that of a step."""
        start = time.perf_counter()
        try:
            yield
            if self._waits and name in _MAIN:
                torch.cuda.current_stream().synchronize()
        finally:
            with self._lock:
                self._seconds[name] += time.perf_counter() - start

    def shares(self, elapsed_sec: float) -> Shares:
        """What was counted so far."""
        with self._lock:
            return Shares(
                elapsed_sec=elapsed_sec,
                main={step: self._seconds[step] for step in _MAIN},
                background={step: self._seconds[step] for step in _BACKGROUND},
            )
