"""Which images of a dataset are used, and which are left out. Both stages ask here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dataset.tables import ImageTable

if TYPE_CHECKING:
    from configs.nodes import DatasetConfig


def chosen_images(
    table: ImageTable, annotations: str | os.PathLike[str], config: DatasetConfig
) -> ImageTable:
    """Choose the images that `DATASET` asks for, by id; those of DATASET.EXCLUDE are among them.

    Args:
        table: all images of the annotation file.
        annotations: the file, which messages name.
        config: the node.

    Raises:
        FileNotFoundError: there is no DATASET.IMAGE_LIST.
        ValueError: the list holds something else than ids, or ids that the annotations lack.
    """
    if config.image_list:
        ids = _known_ids("DATASET.IMAGE_LIST", config.image_list, table, annotations)
        table = table.rows(np.searchsorted(table.ids, ids))
    return table.first(config.max_images)


def excluded_ids(
    table: ImageTable, annotations: str | os.PathLike[str], config: DatasetConfig
) -> NDArray[np.int64]:
    """Return the ids of DATASET.EXCLUDE, ascending: of images that may not be opened.

    Args, Raises: as `chosen_images`, of that list.
    """
    if not config.exclude:
        return np.empty(0, np.int64)
    return _known_ids("DATASET.EXCLUDE", config.exclude, table, annotations)


def read_image_list(key: str, path: str | os.PathLike[str]) -> NDArray[np.int64]:
    """Read image ids, one a line; empty lines and what follows a # do not count.

    Args:
        key: the config key that names the file, for messages.
        path: the file.

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
        raise FileNotFoundError(f"{key}: there is no file {name}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{key}: {name} is not a text file ({error})") from None
    ids = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        try:
            ids.update([int(text)] if text else [])
        except ValueError:
            raise ValueError(
                f"{key}: {name}:{number}: expected one image id, got {text[:40]!r}"
            ) from None
    if not ids:
        raise ValueError(f"{key}: {name} names no image")
    try:
        return np.array(sorted(ids), dtype=np.int64)
    except OverflowError:
        raise ValueError(f"{key}: {name} holds an id beyond 64 bits") from None


def _known_ids(
    key: str, path: str, table: ImageTable, annotations: str | os.PathLike[str]
) -> NDArray[np.int64]:
    """Read a list, and refuse ids that the annotations lack."""
    ids = read_image_list(key, path)
    unknown = np.setdiff1d(ids, table.ids)
    if len(unknown):
        raise ValueError(
            f"{key}: {path} names {len(unknown)} images that are not in {os.fspath(annotations)}, "
            f"the first has the id {unknown[0]}"
        )
    return ids
