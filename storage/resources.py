"""What a process runs out of, and what to do about it: one line for each kind of means.

Python, torch and numpy each say it in a way of their own, most of them without a remedy. Whoever
talks to a user asks here.
"""

from __future__ import annotations

import errno
import re
import sys

if sys.platform != "win32":
    import resource  # now: where no file can be opened any more, no module can be imported

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_FREE_SPACE = "no space left; free some, and run again"
_LARGER_FILES = "larger than this process may write; raise the limit with ulimit -f unlimited"
_MORE_FILES = "too many open files{limit}; raise the limit with ulimit -n, or use fewer workers"
_MORE_MEMORY = "out of memory; use smaller batches or fewer workers, or a machine with more memory"
_MORE_THREADS = (
    "no thread or process can be started any more; raise the limit (ulimit -u, or the container's"
    " limit of processes), or use fewer workers"
)
_NOT_INSTALLED = (
    "activate the environment that has it (. .venv/bin/activate; `make test` sets one up), or "
    "install it"
)

# What torch and Python say in a RuntimeError, whose type tells nothing; and `dataset.pixels`, whose
# errors lose their number between processes.
_TEXTS = (
    (re.compile(r"can't start new thread|thread creation failed|pthread_create"), _MORE_THREADS),
    (re.compile(r"too many open files|received 0 items of ancdata", re.I), _MORE_FILES),
    (re.compile(r"(can't|cannot) allocate memory|std::bad_alloc", re.I), _MORE_MEMORY),
    (re.compile(r"there is not enough memory to read"), _MORE_MEMORY),
    (re.compile(r"no space left on device", re.I), _FREE_SPACE),
    (re.compile(r"file too large", re.I), _LARGER_FILES),
)  # fmt: skip


def exhausted(error: BaseException) -> str:
    """Say what has run out, and what to do, in one line without a place; "" if nothing has."""
    if isinstance(error, MemoryError):
        return _MORE_MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        return _of_number(error.errno)
    if isinstance(error, OSError | RuntimeError):
        text = str(error)
        said = (remedy for pattern, remedy in _TEXTS if pattern.search(text))
        return _with_limit(next(said, ""))
    return ""


def with_remedy(error: BaseException, text: str) -> str:
    """The text of an error, and what to do where something has run out or is not installed."""
    lacking = exhausted(error) or exhausted(RuntimeError(text))
    if isinstance(error, ModuleNotFoundError) and error.name:  # Python's own: ours have no name
        lacking = _NOT_INSTALLED
    if not text:
        return lacking
    return text if not lacking or lacking in text else f"{text}: {lacking}"


def of_disk(error: BaseException) -> bool:
    """Return whether an error says that a disk, a quota or a file's size is used up."""
    return exhausted(error) in (_FREE_SPACE, _LARGER_FILES)


def _of_number(number: int) -> str:
    if number in FULL_DISK:
        return _FREE_SPACE
    if number == errno.EFBIG:
        return _LARGER_FILES
    if number in _NO_DESCRIPTORS:
        return _with_limit(_MORE_FILES)
    if number == errno.ENOMEM:
        return _MORE_MEMORY
    # Of fork and of threads; no file that is read or written here is non-blocking.
    return _MORE_THREADS if number == errno.EAGAIN else ""


def _with_limit(text: str) -> str:
    return text.format(limit=f" (limit {limit})" if (limit := _open_files()) else "")


def _open_files() -> int:
    if sys.platform == "win32":
        return 0
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
