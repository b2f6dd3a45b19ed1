"""Several data sets as one: an image's id says which of them it belongs to.

Images of the first set keep their ids. Those of the n-th, counted from 0, have n * 2^48 added, so
that no two images share one: by these ids a cache, a list of images and a training know them. A set
that is alone keeps whatever ids it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dataset.annotations import dataset_fingerprint
from dataset.catalog import is_written
from dataset.contents import Annotations
from dataset.reading import load_annotations
from dataset.registry import locate
from dataset.tables import ImageTable

_STEP = 1 << 48


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """One of the data sets in use.

    Attributes:
        name: by which it is registered.
        path: its annotation file.
        image_root: folder that holds its images.
        annotations: all that the file holds; images have their ids among all sets.
        images: those of its images that are in use.
        labelled: whether it is trained on with its objects; else its images alone are known.
    """

    name: str
    path: str
    image_root: str
    annotations: Annotations
    images: ImageTable
    labelled: bool = True


def find_sets(names: Sequence[str], unlabelled: Sequence[str] = ()) -> tuple[DataSet, ...]:
    """Find registered data sets that are used together, with all their images.

    Args:
        names: of those with labels.
        unlabelled: of those without, which come behind them.

    Raises:
        FileNotFoundError, ValueError: as `locate`, `load_annotations` and `among_several`.
    """
    count = len(names) + len(unlabelled)
    return tuple(
        find_set((*names, *unlabelled), number, labelled=number < len(names))
        for number in range(count)
    )


def find_set(names: Sequence[str], number: int, *, labelled: bool = True) -> DataSet:
    """Find one of several registered data sets by its position.

    Raises:
        FileNotFoundError, ValueError: as `find_sets`.
    """
    path, image_root = locate(names[number])
    annotations = load_annotations(path, labelled=labelled)
    if is_written(path):
        annotations = replace(annotations, path=f"dataset {names[number]!r}")
    if len(names) > 1:
        annotations = among_several(annotations, number)
    return DataSet(
        name=names[number],
        path=path,
        image_root=image_root,
        annotations=annotations,
        images=annotations.images,
        labelled=labelled,
    )


def among_several(annotations: Annotations, number: int) -> Annotations:
    """Give images, and what refers to them, their ids among several sets.

    Raises:
        ValueError: an id of the file is negative, or 2^48 or more.
    """
    images, objects = annotations.images, annotations.objects
    outside = images.ids[(images.ids < 0) | (images.ids >= _STEP)]
    if len(outside):
        raise ValueError(
            f"{annotations.path}: image id {outside[0]}: expected 0 to 2^48 - 1, as several data "
            "sets are used together; number the images anew"
        )
    return replace(
        annotations,
        images=replace(images, ids=id_among_several(images.ids, number)),
        objects=replace(objects, image_ids=id_among_several(objects.image_ids, number)),
    )


def id_among_several(image_id: Any, number: int) -> Any:
    """The id, or ids, that images of the n-th set have beside other sets."""
    return image_id + number * _STEP


def set_of(image_id: int, num_sets: int) -> int:
    """The position of the set that an image belongs to."""
    return image_id // _STEP if num_sets > 1 else 0


def joined(sets: Sequence[DataSet]) -> ImageTable:
    """The images in use of all sets, sorted by id."""
    tables = [one.images for one in sets]
    return ImageTable(
        ids=np.concatenate([one.ids for one in tables]),
        file_names=[name for one in tables for name in one.file_names],
        heights=np.concatenate([one.heights for one in tables]),
        widths=np.concatenate([one.widths for one in tables]),
    )


def sets_fingerprint(sets: Sequence[DataSet]) -> dict[str, Any]:
    """What a manifest says of the images that were planned.

    Returns:
        Of one set its `dataset_fingerprint`; of several `{"sets": [...]}`, with the name and the
        fingerprint of each, in their order.
    """
    if len(sets) == 1:
        return dataset_fingerprint(sets[0].images)
    return {"sets": [{"name": one.name, **dataset_fingerprint(one.images)} for one in sets]}


def stated_sets(fingerprint: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The fingerprint of each set in what a manifest says of them; that of one has no name."""
    sets: list[Mapping[str, Any]] = fingerprint.get("sets", [fingerprint])
    return sets


def without_objects(sets: Sequence[DataSet]) -> int:
    """Count the images in use of labelled sets that have no object, or crowds alone."""
    return sum(
        int((~np.isin(one.images.ids, objects.image_ids[~objects.crowds])).sum())
        for one in sets
        for objects in [one.annotations.objects]
        if one.labelled
    )
