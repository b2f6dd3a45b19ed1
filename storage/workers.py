"""Processes that share read-only state: forked where that is safe, spawned elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from contextlib import contextmanager
from typing import Any, TypeVar

from storage.errors import CacheError
from storage.resources import exhausted

Task = TypeVar("Task")
Result = TypeVar("Result")

_state: Any = None
_LOOK_EVERY_SEC = 5.0

# Event loops without work, ours and zarr's: they hold no lock, and ours starts anew after a fork.
_IDLE_THREADS = ("storage-io", "zarr_")


@contextmanager
def mapped(
    function: Callable[[Any, Task], Result],
    state: Any,
    tasks: Sequence[Task],
    *,
    workers: int,
) -> Iterator[Iterator[Result]]:
    """Apply a function to many tasks, in the background; give the results in their order.

    Args:
        function: of the state and one task; importable by its name.
        state: what all tasks share; a forked process inherits it, another one gets a copy.
        tasks: what to do.
        workers: processes; one means this one, and then nothing happens in the background.

    Raises:
        CacheError: a process died, or cannot be started.
    """
    if workers <= 1:
        yield (function(state, task) for task in tasks)
        return
    context = multiprocessing.get_context("fork" if _may_fork() else "spawn")
    pool = ProcessPoolExecutor(workers, context, _adopt, (state,))
    try:
        yield _results(pool, [pool.submit(_call, function, task) for task in tasks])
    except (OSError, RuntimeError) as error:
        if isinstance(error.__cause__, _RemoteTraceback):
            raise  # a task's own
        # From Python 3.12 on, what ended the pool's own thread is a text behind the pool's error.
        lacking = exhausted(error) or exhausted(RuntimeError(str(error.__cause__)))
        if lacking:
            raise CacheError(
                f"{workers} processes cannot be started: {lacking}, or try again with --workers 1"
            ) from error
        if not isinstance(error, BrokenProcessPool):
            raise
        raise CacheError(
            f"one of {workers} processes died (out of memory?); try again with --workers 1"
        ) from error
    finally:
        _shut_down(pool)


def _results(pool: ProcessPoolExecutor, futures: list[Future[Result]]) -> Iterator[Result]:
    """Yield results as they come, for as long as there is somebody to bring them."""
    for future in futures:
        while not wait([future], timeout=_LOOK_EVERY_SEC).done:
            if not _is_managed(pool):
                raise RuntimeError("can't start new thread")  # in the pool's own thread
        yield future.result()


def _is_managed(pool: Any) -> bool:
    thread = pool._executor_manager_thread
    return thread is not None and bool(thread.is_alive())


def _shut_down(pool: Any) -> None:
    if not _is_managed(pool):
        # Nobody will tell the processes that they may end, and the interpreter waits for them.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool._executor_manager_thread = None
    pool.shutdown(cancel_futures=True)


def _may_fork() -> bool:
    """Return whether a forked process would work.

    It has none of the parent's threads: locks that these hold stay locked, and the client of an
    object store waits for its own for ever.
    """
    names = [one.name for one in threading.enumerate() if one is not threading.current_thread()]
    idle = all(name.startswith(_IDLE_THREADS) for name in names)
    return sys.platform == "linux" and idle and "obstore" not in sys.modules


def _call(function: Callable[[Any, Task], Result], task: Task) -> Result:
    return function(_state, task)


def _adopt(state: Any) -> None:
    global _state
    _state = state
    # Ctrl-C reaches every process of the terminal; the parent is the one to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a forked process inherits would unwind the task alone, and the next one begin.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(signal.SIGKILL)


def end_with_parent(number: signal.Signals) -> None:
    """Send this process of `multiprocessing` a signal once its parent is gone.

    A parent that was killed tells nobody to end.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        end_after(parent.join, number)


def end_after(wait: Callable[[], object], number: signal.Signals) -> None:
    """Send this process a signal once a call returns, for which a thread waits."""

    def watch() -> None:
        wait()
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, name="parent", daemon=True).start()
