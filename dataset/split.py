"""One annotation file parted into a training and a validation set.

Which set an image is in depends on the seed and its id alone, so that images that are added later
move no other; but for the few that are moved so that each class is in both sets.

Shape letters: N images, M objects.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.wording import listed
from dataset.coco_json import of_images, write_reduced
from dataset.contents import Annotations
from dataset.image_files import require_images
from dataset.layouts import folders_near, link_images, new_places
from dataset.reading import load_annotations
from dataset.registry import find_image_root

NAMES = ("train", "val")
_DRAWS = 2**48
_SHOWN_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the two sets.

    Attributes:
        name: "train" or "val".
        file_names: image id to path below the image folder.
        num_objects: on these images.
    """

    name: str
    file_names: dict[int, str]
    num_objects: int

    def reduced(self, section: str, element: Any) -> Any:
        """An element of the file as it is in this set; None if it is not."""
        return of_images(section, element, self.file_names)


@dataclass(frozen=True, kw_only=True)
class Parted:
    """What was written.

    Attributes:
        parts: training and validation set.
        root: the folder that their images lie in.
        notes: a line for each reason why classes are not in both sets, with the first of them.
        num_classes: how many classes there are.
    """

    parts: tuple[Part, ...]
    root: Path
    notes: tuple[str, ...]
    num_classes: int


def write_split(
    annotations: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    val: float,
    seed: int,
    images: str | os.PathLike[str] | None = None,
) -> Parted:
    """Write a folder in COCO's layout with the splits `train` and `val` of one annotation file.

    Whatever the file holds is in one of the two, or in both; ids stay what they are. Images are
    not copied: `images/<split>` links to their folder, unless the output is a folder that has them.

    Args:
        annotations: the file.
        output: the folder to write; it may hold other splits.
        val: share of the images that are to be in the validation set, about.
        seed: another one gives another split.
        images: the image folder; None looks for it beside and above the file.

    Raises:
        FileNotFoundError: the file or an image is missing.
        ValueError: the share is out of range, the file cannot be used or has fewer than two images,
            or the output holds such splits.
    """
    if not 0 < val < 1:
        raise ValueError(f"--val must lie between 0 and 1, such as 0.2, got {val:g}")
    source, target = Path(annotations), Path(output)
    root = Path(images) if images else find_image_root(source, folders_near(source))
    places = [new_places(target, name, root) for name in NAMES]
    whole = load_annotations(source, root)
    if len(whole.images) < 2:
        raise ValueError(f"{source}: expected two images or more to split, got one; add images")
    names = [os.path.relpath(path, root) for path in require_images(whole.images, root)]
    is_val, notes = choose(whole, val, seed)
    chosen = zip(NAMES, (~is_val, is_val), strict=True)
    parts = tuple(_part(name, whole, names, mask) for name, mask in chosen)
    for part, (file, link) in zip(parts, places, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        link_images(root, target, link)
        write_reduced(source, file, part.reduced)
    return Parted(parts=parts, root=root, notes=tuple(notes), num_classes=len(whole.categories))


def choose(whole: Annotations, val: float, seed: int) -> tuple[NDArray[np.bool_], list[str]]:
    """Choose the validation images.

    Returns:
        (N,) whether an image is one, and a line for each reason why classes are not in both sets.
    """
    draws = np.array([_draw(seed, number) for number in whole.images.ids.tolist()])
    is_val = draws < val
    rows_of = _rows_of_classes(whole)
    # Neither set may be empty, whatever the images show.
    needed = [np.arange(len(draws)), *(rows for rows in rows_of.values() if len(rows) > 1)]
    mates: list[list[NDArray[np.intp]]] = [[] for _ in draws]
    for rows in needed:
        for row in rows.tolist():
            mates[row].append(rows)
    for rows in sorted(needed, key=len):
        for wanted in (True, False):
            if not (is_val[rows] == wanted).any():
                _move_one(rows, wanted, is_val, draws, mates)
    return is_val, _notes(whole.categories, {key: is_val[rows] for key, rows in rows_of.items()})


def _draw(seed: int, image_id: int) -> float:
    """A number in [0, 1) for an image, the same on every machine."""
    digest = hashlib.blake2b(f"{seed} {image_id}".encode(), digest_size=6).digest()
    return int.from_bytes(digest) / _DRAWS


def _rows_of_classes(whole: Annotations) -> dict[int, NDArray[np.intp]]:
    """Category id to the rows of the images that show it: crowds and empty boxes teach nothing."""
    objects = whole.objects
    objects = objects.rows(~objects.crowds & ~whole.box_warnings.is_without_extent)
    rows = np.searchsorted(whole.images.ids, objects.image_ids)
    return {key: np.unique(rows[objects.category_ids == key]) for key in whole.categories}


def _move_one(
    rows: NDArray[np.intp],
    wanted: bool,
    is_val: NDArray[np.bool_],
    draws: NDArray[np.float64],
    mates: list[list[NDArray[np.intp]]],
) -> None:
    """Move the image that was drawn nearest to the other set, unless a class would leave its own.

    Classes of more images do not count: their turn comes later, and they have more to choose from.

    Args:
        rows: the images of a class, all in one set.
        wanted: whether it lacks the validation set.
        is_val: (N,) changed in place.
        draws: (N,) of every image.
        mates: of every image, the rows of each class that it shows.
    """
    for row in sorted(rows.tolist(), key=lambda one: draws[one], reverse=not wanted):
        rarer = (others for others in mates[row] if len(others) <= len(rows))
        if all((is_val[others] != wanted).sum() > 1 for others in rarer):
            is_val[row] = wanted
            return


def _notes(categories: Mapping[int, str], is_val: Mapping[int, NDArray[np.bool_]]) -> list[str]:
    """A line for each reason why classes are not in both sets, with the first of them.

    Args:
        categories: id to name.
        is_val: category id to whether each image that shows it is in the validation set.
    """
    named: dict[str, list[str]] = {}
    for key, name in categories.items():
        if reason := _reason(is_val[key]):
            named.setdefault(reason, []).append(f"{key} {name!r}")
    return [
        f"{len(names)} of {len(categories)} classes are {reason}: "
        + listed(names, shown=_SHOWN_NAMES)
        for reason, names in named.items()
    ]


def _reason(is_val: NDArray[np.bool_]) -> str:
    """Why classes that images show so are not in both sets; "" if they are."""
    if not len(is_val):
        return "in neither set, as no image shows them"
    if is_val.any() and not is_val.all():
        return ""
    where = f"in {NAMES[int(is_val[0])]} alone"
    if len(is_val) == 1:
        return f"{where}, as one image shows each"
    return f"{where}, as to move any of their images takes another class from its set"


def _part(name: str, whole: Annotations, names: Sequence[str], chosen: NDArray[np.bool_]) -> Part:
    rows = np.flatnonzero(chosen).tolist()
    ids = whole.images.ids[chosen]
    return Part(
        name=name,
        file_names={int(key): names[row] for key, row in zip(ids, rows, strict=True)},
        num_objects=int(np.isin(whole.objects.image_ids, ids).sum()),
    )
