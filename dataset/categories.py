"""A set of some categories of another: its own annotations, and links to the other's images."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.coco_json import of_images, write_reduced
from dataset.contents import Annotations
from dataset.image_files import require_images
from dataset.layouts import Split, find_splits, link_images, new_places
from dataset.reading import load_annotations
from dataset.registry import find_image_root


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of one split.

    Attributes:
        split: of the set that is read.
        root: its image folder.
        categories: ids that are kept.
        file_names: image id to path below `root`, of the images that are kept.
        num_objects: of those categories, on those images.
    """

    split: Split
    root: Path
    categories: frozenset[int]
    file_names: dict[int, str]
    num_objects: int

    def reduced(self, section: str, element: Any) -> Any:
        """An element of the file as it is kept; None if it is not."""
        key = {"annotations": "category_id", "categories": "id"}.get(section)
        if key and element[key] not in self.categories:
            return None
        return of_images(section, element, self.file_names)


def write_subset(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    categories: Sequence[str],
    *,
    splits: Sequence[str] = (),
    keep_empty: bool = False,
) -> list[Kept]:
    """Write a folder in COCO's layout with the objects of some categories.

    Ids of images, objects and categories stay what they are; so does everything else in the
    annotation files. Images are not copied: `images/<split>` is a link to the other set's folder.

    Args:
        folder: the set, in a layout of `dataset.layouts`.
        output: the folder to write; it may hold other splits.
        categories: names.
        splits: which to take; all by default.
        keep_empty: keep the images without such objects too. Without it those with nothing but
            crowds go as well, since detectron2's training leaves them out.

    Returns:
        What was written of each split.

    Raises:
        FileNotFoundError: the folder, one of the splits or an image is missing.
        ValueError: a category is unknown, the annotations cannot be used, or the output holds
            such a split.
    """
    target = Path(output)
    chosen = _chosen(folder, splits)
    # Before anything is written.
    roots = [find_image_root(one.annotations, one.image_folders) for one in chosen]
    named = list(zip(chosen, roots, strict=True))
    places = [new_places(target, one.name, root) for one, root in named]
    found = [_select(one, root, categories, keep_empty) for one, root in named]
    for kept, (file, link) in zip(found, places, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        link_images(kept.root, target, link)
        write_reduced(kept.split.annotations, file, kept.reduced)
    return found


def _chosen(folder: str | os.PathLike[str], names: Sequence[str]) -> list[Split]:
    splits = {one.name: one for one in find_splits(Path(folder))}
    missing = [name for name in names if name not in splits]
    if missing:
        raise FileNotFoundError(
            f"{os.fspath(folder)}: there is no split {missing[0]!r}; there are {', '.join(splits)}"
        )
    return [one for name, one in splits.items() if not names or name in names]


def _select(split: Split, root: Path, names: Sequence[str], keep_empty: bool) -> Kept:
    annotations = load_annotations(split.annotations, root)
    categories = _ids(annotations, names)
    objects = annotations.objects
    wanted: NDArray[np.bool_] = np.isin(objects.category_ids, sorted(categories))
    images = annotations.images
    if not keep_empty:
        shown = objects.image_ids[wanted & ~objects.crowds]
        images = images.rows(np.flatnonzero(np.isin(images.ids, shown)))
    if not len(images):
        raise ValueError(
            f"{split.annotations}: no image has an object of {', '.join(names)}; name the other "
            "splits by --split, or keep its images by --keep-empty"
        )
    paths = require_images(images, root)
    below = [os.path.relpath(path, root) for path in paths]
    return Kept(
        split=split,
        root=root,
        categories=categories,
        file_names=dict(zip(images.ids.tolist(), below, strict=True)),
        num_objects=int((wanted & np.isin(objects.image_ids, images.ids)).sum()),
    )


def _ids(annotations: Annotations, names: Collection[str]) -> frozenset[int]:
    known = annotations.categories
    for name in names:
        if name not in known.values():
            near = difflib.get_close_matches(name, known.values(), n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{annotations.path}: there is no category {name!r}{hint}; there are "
                f"{', '.join(known.values())}"
            )
    return frozenset(number for number, name in known.items() if name in names)
