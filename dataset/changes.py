"""What changed in the annotations of a cache beside its images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dataset.annotations import annotations_digest


def annotations_note(number: int) -> str:
    """Name, in a cache's log, of the note that holds the digest of the n-th annotation file."""
    return f"annotations-{number}" if number else "annotations"


def changed_annotations(
    notes: Mapping[str, Any], path: str | os.PathLike[str], number: int = 0
) -> str:
    """Say that annotations changed since the dump, in something else than the planned images.

    The teacher's outputs do not depend on them, so this is a warning and no error.

    Args:
        notes: the cache's log, by name.
        path: the annotation file now.
        number: position of its data set among those of the cache.

    Returns:
        The warning; "" if the file is the same, or the dump left no note.
    """
    note = notes.get(annotations_note(number))
    noted = note.get("sha256") if isinstance(note, dict) else None
    if noted is None or noted == annotations_digest(path):
        return ""
    return (
        f"{os.fspath(path)} is not the file that the cache was dumped with; for the images "
        "in use the cache holds, but trainings before and after saw other annotations"
    )
