"""The event loop behind asynchronous stores: one, in a thread of its own, started on first use.

Callers need not be asynchronous, and may be. A forked process gets a loop of its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_loop: asyncio.AbstractEventLoop | None = None
_lock = threading.Lock()
_client_was_forked = False


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end and return what it returns, or raise what it raises."""
    global _loop
    with _lock:
        if _loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="storage-io", daemon=True).start()
            _loop = loop  # only now: where no thread can be started, later calls would wait for it
    return asyncio.run_coroutine_threadsafe(work, _loop).result()


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
