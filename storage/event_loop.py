"""The event loop behind asynchronous stores: one, in a thread of its own, started on first use.

Callers need not be asynchronous, and may be. A forked process gets a loop of its own.

The client's threads hand each result over by a call into Python, which may last longer than it
takes the main thread to end with that result. The interpreter ends a thread that comes back to it
too late, and a thread of the client then aborts the process. So the process waits for them at its
end.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, wait
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

# How long the end of the process waits for the client's threads, and how long it lets them run
# between two looks.
_END_SEC = 5.0
_PAUSE_SEC = 0.01


class _Loop(asyncio.SelectorEventLoop):
    """A loop that knows which calls from other threads are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[object, None] = {}

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.Handle:
        call = object()
        self.calls[call] = None
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        finally:
            # Not a call, such as a lock needs: behind one the interpreter may turn to another
            # thread, and this one would still have to come back.
            del self.calls[call]


_loop: _Loop | None = None
_lock = threading.Lock()
_is_settling = False
_client_was_forked = False


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end and return what it returns, or raise what it raises.

    A daemon thread that is still waiting when the process ends, ends here without a word.
    """
    global _loop
    with _lock:
        if _loop is None:
            loop = _Loop()
            threading.Thread(target=loop.run_forever, name="storage-io", daemon=True).start()
            # Not at import: a spawned process may forget what was registered before it begins.
            atexit.register(_settle)
            _loop = loop  # only now: where no thread can be started, later calls would wait for it
    try:
        return asyncio.run_coroutine_threadsafe(work, _loop).result()
    except CancelledError:
        if _is_settling:
            raise SystemExit from None
        raise


def _settle() -> None:
    """Give up what is under way, and wait until no other thread is calling the loop."""
    global _is_settling
    if _loop is None:
        return
    _is_settling = True
    deadline = time.monotonic() + _END_SEC
    wait([asyncio.run_coroutine_threadsafe(_cancel_all(), _loop)], _END_SEC)
    while _loop.calls and time.monotonic() < deadline:
        time.sleep(_PAUSE_SEC)
    time.sleep(_PAUSE_SEC)  # the client's threads look once more at what was cancelled


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_END_SEC)


def client_was_forked() -> bool:
    """Return whether this process was forked from one that had loaded the object-store client.

    The client's threads do not survive the fork, and its requests would wait for them for ever.
    """
    return _client_was_forked


def _after_fork() -> None:
    """Forget the loop, whose thread stayed in the parent, and note what cannot be forgotten."""
    global _loop, _lock, _client_was_forked
    _loop, _lock = None, threading.Lock()
    _client_was_forked = "obstore" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
