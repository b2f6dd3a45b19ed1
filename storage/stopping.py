"""SIGTERM of schedulers and SIGHUP of lost terminals: each unwinds like Ctrl-C, and only once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What is meant once comes twice: from a terminal and from torchrun, from a scheduler and a parent.
ONE_REQUEST_SEC = 5.0

# Windows has no SIGHUP, and reads caches too.
_NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Terminated(KeyboardInterrupt):
    """A signal ended the command.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        """Args: the signal."""
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def terminable() -> Iterator[None]:
    """Within this, each raises `Terminated`; what comes again within some seconds is passed over.

    Nothing changes outside the main thread, nor for a signal that is ignored, as in a background
    job of a shell or under `nohup`.
    """
    since = -ONE_REQUEST_SEC

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if (now := time.monotonic()) - since >= ONE_REQUEST_SEC:
            since = now
            raise Terminated(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _NUMBERS}
    # None: of no Python code.
    before = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
