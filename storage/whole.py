"""Files that are whole or not there, whenever a process is killed or a disk is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.resources import of_disk


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give the place for what becomes the file at the end; of what fails, nothing stays.

    What is no file, such as /dev/stdout, is written to as it is.

    Raises:
        OSError: it cannot be written; names the file.
    """
    partial = path.with_name(path.name + ".partial")
    if path.exists() and not path.is_file():
        partial = path
    try:
        yield partial
        if partial != path:
            partial.replace(path)
    except OSError as error:
        if error.filename == str(partial) or (error.filename is None and of_disk(error)):
            error.filename = str(path)
        raise
    finally:
        if partial != path:
            partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is either the old or the new one, never half of it."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")
