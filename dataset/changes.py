"""What changed about the images of a cache, in words: a digest alone names nobody."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.annotations import ImageTable, annotations_digest
from dataset.views import Augmentation, plan_views

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
        f"{os.fspath(path)} is not the file that the cache was dumped with, although its images "
        "are the same; the cache holds, but trainings before and after saw other annotations"
    )


def changed_images(
    table: ImageTable,
    augmentation: Augmentation,
    *,
    ids: NDArray[np.int64],
    heights: NDArray[Any],
    widths: NDArray[Any],
) -> list[str]:
    """Say how images differ from those that a cache was planned from.

    A cache keeps no file names and no stored sizes, but the size of every view, which tells most
    changes of an image's size.

    Args:
        table: the images now.
        augmentation: the cache's.
        ids: (N,) ids of the cache's view 0.
        heights: (N,) its pixels.
        widths: (N,) likewise.

    Returns:
        One sentence for each kind of change; at least one, as the digests are known to differ.
    """
    found = []
    gone, new = np.setdiff1d(ids, table.ids), np.setdiff1d(table.ids, ids)
    for images, what in ((gone, "gone"), (new, "new")):
        if len(images):
            found.append(f"{len(images)} images are {what}, the first has the id {images[0]}")
    _, rows, places = np.intersect1d(table.ids, ids, return_indices=True)
    now = plan_views(
        augmentation,
        image_ids=table.ids[rows],
        view=0,
        heights=table.heights[rows],
        widths=table.widths[rows],
    )
    other = np.flatnonzero((now.height != heights[places]) | (now.width != widths[places]))
    if len(other):
        first = other[0]
        found.append(
            f"{len(other)} images have another size, the first has the id {table.ids[rows[first]]}"
            f": its view 0 was {widths[places[first]]} x {heights[places[first]]} pixels and would"
            f" now be {now.width[first]} x {now.height[first]}"
        )
    return found or ["the ids and the sizes of the views are the same, so file names changed"]
