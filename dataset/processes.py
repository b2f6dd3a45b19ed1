"""Work on many images in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from storage import workers as processes
from storage.errors import CacheError

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

    Raises:
        OSError: a process died, or cannot be started.
    """
    chunks = [tasks[start : start + chunk] for start in range(0, len(tasks), chunk)]
    try:
        with processes.mapped(_do, function, chunks, workers=workers) as results:
            for done in results:
                yield from done
    except CacheError as error:
        raise OSError(str(error)) from error


def _do(function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
    return [function(task) for task in tasks]
