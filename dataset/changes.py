"""What changed in the annotations of a cache beside its images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dataset.annotations import annotations_digest

# Name, in a cache's log, of the note that holds the digest of the annotation file.
ANNOTATIONS_NOTE = "annotations"


def changed_annotations(notes: Mapping[str, Any], path: str | os.PathLike[str]) -> str:
    """Say that annotations changed since the dump, in something else than the planned images.

    The teacher's outputs do not depend on them, so this is a warning and no error.

    Args:
        notes: the cache's log, by name.
        path: the annotation file now.

    Returns:
        The warning; "" if the file is the same, or the dump left no note.
    """
    note = notes.get(ANNOTATIONS_NOTE)
    noted = note.get("sha256") if isinstance(note, dict) else None
    if noted is None or noted == annotations_digest(path):
        return ""
    return (
        f"{os.fspath(path)} is not the file that the cache was dumped with, although the "
        "images in use are the same; the cache holds, but trainings before and after saw other "
        "annotations"
    )
