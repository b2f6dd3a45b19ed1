"""A job that fails for a reason of its surroundings says so once, in one line, with a path.

detectron2's loop logs every error with its traceback, a log on a full disk prints one for each
line that it cannot write, and what fails to write metrics or a checkpoint names no file.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from configs.wording import one_line
from storage.progress import say
from storage.resources import exhausted, of_disk, with_remedy

from .command import FOR_USERS

if TYPE_CHECKING:
    from detectron2.config import CfgNode

Result = TypeVar("Result")

_HANDLE_ERROR = logging.Handler.handleError
_LOOP = "detectron2.engine.train_loop"
# Of torch's archive writer, whatever it was that could not be written.
_ARCHIVE = ("PytorchStreamWriter", "inline_container.cc")


def in_one_line(job: Callable[[CfgNode, Any], Result]) -> Callable[[CfgNode, Any], Result]:
    """Let a job (of config and arguments) fail in one line; its files lie in OUTPUT_DIR."""

    @functools.wraps(job)
    def run(cfg: CfgNode, args: Any) -> Result:
        with failing_in_one_line(cfg.OUTPUT_DIR):
            return job(cfg, args)

    return run


@contextmanager
def failing_in_one_line(folder: str) -> Iterator[None]:
    """Shorten what the log says about errors of the surroundings, and name what is written to.

    Raises:
        OSError: something could not be written there.
    """
    loop = logging.getLogger(_LOOP)
    loop.addFilter(_without_traceback)
    logging.Handler.handleError = _end_log  # type: ignore[assignment,method-assign]
    try:
        yield
    except (OSError, RuntimeError) as error:
        path = getattr(error, "filename", None)
        is_told = folder in str(error) and not path
        if is_told or not (of_disk(error) or _is_of_archive(error)):
            raise
        what = "cannot be written: " + (
            exhausted(error) or "is the disk full? Free some, and resume"
        )
        raise OSError(f"{path or folder}: {what}") from error
    finally:
        logging.Handler.handleError = _HANDLE_ERROR  # type: ignore[method-assign]
        loop.removeFilter(_without_traceback)


def _is_of_archive(error: BaseException) -> bool:
    return any(part in str(error) for part in _ARCHIVE)


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and (
        isinstance(error, FOR_USERS) or exhausted(error) or _is_of_archive(error)
    ):
        record.exc_info = record.exc_text = None
        text = one_line(error) if isinstance(error, Exception) else ""
        record.msg, record.args = "Training stopped: %s", (with_remedy(error, text),)
    return True


def _end_log(handler: logging.Handler, record: logging.LogRecord) -> None:
    """What a handler does with an error of its own: say so once, and write no more."""
    error, stream = sys.exc_info()[1], getattr(handler, "stream", None)
    if getattr(stream, "closed", False):
        handler.addFilter(_nothing)
        return
    if not isinstance(error, OSError):  # a message that cannot be formatted: our own mistake
        _HANDLE_ERROR(handler, record)
        return
    handler.addFilter(_nothing)
    name = getattr(stream, "name", handler)
    say(f"warning: {name}: {with_remedy(error, str(error))}; this log ends here")
    if stream is not None and stream not in (sys.stdout, sys.stderr):
        with suppress(OSError):  # or closing it fails again when the process ends
            stream.close()


def _nothing(record: logging.LogRecord) -> bool:
    return False
