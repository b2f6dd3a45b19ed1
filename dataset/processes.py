"""Work on many images in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def mapped(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, chunk: int = 1
) -> Iterator[Result]:
    """Give the results of tasks in their order, as `map` does; by one worker in this process.

    Args:
        function: of a module, so that other processes find it.
        tasks: its arguments.
        workers: processes.
        chunk: tasks that a process is handed at once.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: a fork of a process with threads can hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, tasks, chunksize=chunk)
