"""Files that are whole or not there, whenever a process is killed or a disk is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give the place for what becomes the file at the end; of what fails, nothing stays."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is either the old or the new one, never half of it."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")
