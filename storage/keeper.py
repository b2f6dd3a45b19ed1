"""Work that is done again and again beside other work, such as renewing a claim."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Keeper:
    """Does some work every few seconds, in a thread, from `start` to `stop`."""

    def __init__(self, work: Callable[[], object], *, every_sec: float, name: str) -> None:
        """Args: what to do, the pause before each time, and what the thread is called."""
        self._work = work
        self._every_sec = every_sec
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_stopped(self) -> bool:
        """Whether it was told to end."""
        return self._stopped.is_set()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for work that is being done."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_sec):
            self._work()
