"""The one reader of annotation files, for every command: what it refuses, all of them refuse."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

from dataset.contents import Annotations
from dataset.elements import Problem
from dataset.image_files import image_path
from dataset.parsing import FileReader
from dataset.tables import ImageTable

__all__ = ["Annotations", "load_annotations", "read_annotations"]

# Files older than this when they were read are not read again: clocks of file systems are coarse.
_SETTLED_NS = 2_000_000_000
_KEPT_FILES = 4


def load_annotations(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    labelled: bool = True,
) -> Annotations:
    """Read an annotation file, and refuse what cannot be used.

    Args:
        path: the COCO annotation file.
        root: the image folder, where images are used: then no file name may lead out of it.
        labelled: whether it is to hold objects and categories; else no object may be in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no COCO annotation file, or something in it is refused; the message
            names the file, the image or object, what is wrong and what to write.
    """
    annotations = read_annotations(path, root)
    if not labelled:
        annotations = annotations.unlabelled()
    annotations.refuse()
    return annotations


def read_annotations(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> Annotations:
    """Read an annotation file, and list what is wrong with it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, so that nothing in it can be checked.
    """
    annotations = _remembered(os.fspath(path))
    if root is None:
        return annotations
    escapes = tuple(_escapes(annotations.images, root))
    if not escapes:
        return annotations
    return replace(
        annotations,
        errors=annotations.errors + escapes,
        image_errors=annotations.image_errors + escapes,
    )


def _escapes(images: ImageTable, root: str | os.PathLike[str]) -> Iterator[Problem]:
    """The images whose absolute names lie outside of the root."""
    for image_id, name in zip(images.ids.tolist(), images.file_names, strict=True):
        if name.startswith("/"):
            try:
                image_path(root, name)
            except ValueError as error:
                yield Problem(name, "image", f"image {image_id}: {error}")


# Path to what tells the file's versions apart, and its content.
_memory: dict[str, tuple[tuple[int, ...], Annotations]] = {}


def _remembered(path: str) -> Annotations:
    """Read a file, or take what this process read of it: training alone asks four times."""
    try:
        state = os.stat(path)
    except OSError:
        return FileReader(path).read()  # which says what is wrong
    version = (state.st_mtime_ns, state.st_size, state.st_ino, state.st_dev)
    if path in _memory and _memory[path][0] == version:
        return _memory[path][1]
    _memory.pop(path, None)
    is_settled = time.time_ns() - state.st_mtime_ns > _SETTLED_NS
    annotations = FileReader(path).read()
    if is_settled:
        _memory[path] = (version, annotations)
        while len(_memory) > _KEPT_FILES:
            del _memory[next(iter(_memory))]
    return annotations
