"""Which images of a dataset are used: those of a list, or the first ones. Both stages ask here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dataset.annotations import ImageTable, load_images

if TYPE_CHECKING:
    from configs.nodes import DatasetConfig


def planned_images(annotations: str | os.PathLike[str], config: DatasetConfig) -> ImageTable:
    """Read the images of an annotation file that `DATASET` asks for, by id.

    Raises:
        FileNotFoundError: there is no annotation file, or no DATASET.IMAGE_LIST.
        ValueError: the annotations are not COCO, the list holds something else than ids, or ids
            that the annotations lack.
    """
    return chosen_images(load_images(annotations), annotations, config)


def chosen_images(
    table: ImageTable, annotations: str | os.PathLike[str], config: DatasetConfig
) -> ImageTable:
    """Choose the images that `DATASET` asks for from the table of an annotation file.

    Raises:
        FileNotFoundError: there is no DATASET.IMAGE_LIST.
        ValueError: the list holds something else than ids, or ids that the annotations lack.
    """
    if config.image_list:
        ids = read_image_list(config.image_list)
        unknown = np.setdiff1d(ids, table.ids)
        if len(unknown):
            raise ValueError(
                f"DATASET.IMAGE_LIST: {config.image_list} names {len(unknown)} images that are "
                f"not in {os.fspath(annotations)}, the first has the id {unknown[0]}"
            )
        table = table.rows(np.searchsorted(table.ids, ids))
    return table.first(config.max_images)


def read_image_list(path: str | os.PathLike[str]) -> NDArray[np.int64]:
    """Read image ids, one a line; empty lines and what follows a # do not count.

    Returns:
        (N,) int64, ascending, each once.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line holds something else, or there is none with an id.
    """
    name = os.fspath(path)
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"DATASET.IMAGE_LIST: there is no file {name}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"DATASET.IMAGE_LIST: {name} is not a text file ({error})") from None
    ids = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        try:
            ids.update([int(text)] if text else [])
        except ValueError:
            raise ValueError(
                f"DATASET.IMAGE_LIST: {name}:{number}: expected one image id, got {text[:40]!r}"
            ) from None
    if not ids:
        raise ValueError(f"DATASET.IMAGE_LIST: {name} names no image")
    try:
        return np.array(sorted(ids), dtype=np.int64)
    except OverflowError:
        raise ValueError(f"DATASET.IMAGE_LIST: {name} holds an id beyond 64 bits") from None
