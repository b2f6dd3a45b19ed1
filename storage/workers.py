"""Processes that share read-only state: forked where that is safe, spawned elsewhere."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from storage.errors import CacheError

Task = TypeVar("Task")
Result = TypeVar("Result")

_state: Any = None

# Event loops without work, ours and zarr's: they hold no lock, and ours starts anew after a fork.
_IDLE_THREADS = ("storage-io", "zarr_")


@contextmanager
def mapped(
    function: Callable[[Any, Task], Result],
    state: Any,
    tasks: Sequence[Task],
    *,
    workers: int,
    chunk: int,
) -> Iterator[Iterator[Result]]:
    """Apply a function to many tasks, in the background; give the results in their order.

    Args:
        function: of the state and one task; importable by its name.
        state: what all tasks share; a forked process inherits it, another one gets a copy.
        tasks: what to do.
        workers: processes; one means this one, and then nothing happens in the background.
        chunk: tasks that a process takes at once.

    Raises:
        CacheError: a process died.
    """
    if workers <= 1:
        yield (function(state, task) for task in tasks)
        return
    context = multiprocessing.get_context("fork" if _may_fork() else "spawn")
    pool = ProcessPoolExecutor(workers, context, _adopt, (state,))
    try:
        yield pool.map(_Call(function), tasks, chunksize=chunk)
    except BrokenProcessPool as error:
        raise CacheError(
            f"one of {workers} processes died (out of memory?); try again with --workers 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _may_fork() -> bool:
    """Return whether a forked process would work.

    It has none of the parent's threads: locks that these hold stay locked, and the client of an
    object store waits for its own for ever.
    """
    names = [one.name for one in threading.enumerate() if one is not threading.current_thread()]
    idle = all(name.startswith(_IDLE_THREADS) for name in names)
    return sys.platform == "linux" and idle and "obstore" not in sys.modules


class _Call:
    """Calls a function with the state of its process."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self._function = function

    def __call__(self, task: Any) -> Any:
        return self._function(_state, task)


def _adopt(state: Any) -> None:
    global _state
    _state = state
    # Ctrl-C reaches every process of the terminal; the parent is the one to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
