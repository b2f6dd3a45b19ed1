"""SIGTERM, by which schedulers end a command: it unwinds like Ctrl-C, and only once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What is meant once comes twice: from a terminal and from torchrun, from a scheduler and a parent.
ONE_REQUEST_SEC = 5.0


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within this, SIGTERM raises `Terminated`; one that comes again waits for some seconds more.

    Nothing changes outside the main thread, nor where the signal is ignored, as in a background
    job of a shell.
    """
    before = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or before in (signal.SIG_IGN, None):  # None: of no Python code
        yield
        return
    since = -ONE_REQUEST_SEC

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if (now := time.monotonic()) - since >= ONE_REQUEST_SEC:
            since = now
            raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
