"""Signals that end a run: SIGINT, SIGTERM, SIGHUP and, where asked for, a scheduler's own.

Within a training step they wait for its end, so that what was trained is saved whole.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from storage.stopping import ONE_REQUEST_SEC

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Attributes:
        number: of the signal; the exit code is 128 more, as a shell has it.
    """

    def __init__(self, number: int, done: str = "") -> None:
        """Args: the signal, and what was saved, for the user."""
        super().__init__(f"by {signal.Signals(number).name}" + (f"; {done}" if done else ""))
        self.number = number


class StopSignals:
    """Raises `Interrupted` for a signal: at once, or, while deferred, where it is looked for.

    A context manager for the main thread; entered in another one it does nothing. A signal that
    comes again after a few seconds is raised at once in any case, whatever is lost.
    """

    def __init__(self, extra: str = "") -> None:
        """Args: name of one more signal, as SOLVER.PREEMPTION_SIGNAL has it."""
        self._numbers = stop_signals(extra)
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._since = 0.0
        self._deferred = False
        self._received: int | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in self._numbers:
                # One that is ignored, as in a background job of a shell, stays so.
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deferred = False
        for number, handler in self._before.items():
            # One that others have set since is theirs.
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
        self._before.clear()

    def defer(self) -> None:
        """From now on signals wait for `immediate` or `raise_pending`."""
        self._deferred = True

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within this a signal is raised at once, and so is one that waits.

        Raises:
            Interrupted: for a signal.
        """
        deferred, self._deferred = self._deferred, False
        try:
            self.raise_pending()
            yield
        finally:
            self._deferred = deferred

    def raise_pending(self, done: str = "") -> None:
        """Raise what waits, if anything does.

        Args:
            done: what was saved, for the user.
        """
        if self._received is not None:
            raise Interrupted(self._received, done)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, which its parent looks after
            raise Interrupted(number)
        first, now = self._received is None, time.monotonic()
        if not first and now - self._since < ONE_REQUEST_SEC:
            return
        self._received, self._since = number, now
        if not first or not self._deferred:
            raise Interrupted(number)
        logger.warning("%s: ending after this step", signal.Signals(number).name)


def stop_signals(extra: str) -> list[signal.Signals]:
    """The signals that end a run.

    Args:
        extra: SOLVER.PREEMPTION_SIGNAL.
    """
    # SIGHUP: its terminal is gone, as where a connection breaks. `nohup` has it ignored.
    known = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return [*known, *([signal.Signals[extra]] if extra else [])]
