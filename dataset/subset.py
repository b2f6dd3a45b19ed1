"""Which images of a dataset are used, and which are left out. Both stages ask here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dataset.sets import DataSet, id_among_several

if TYPE_CHECKING:
    from configs.nodes import DatasetConfig


def chosen_images(sets: Sequence[DataSet], config: DatasetConfig) -> tuple[DataSet, ...]:
    """Choose the images that `DATASET` asks for, by id; those of DATASET.EXCLUDE are among them.

    Args:
        sets: the data sets in use, with all their images.
        config: the node.

    Raises:
        FileNotFoundError: there is no DATASET.IMAGE_LIST.
        ValueError: the list holds something else than ids, or ids that no set has.
    """
    tables = [one.images for one in sets]
    if config.image_list:
        ids = _known_ids("DATASET.IMAGE_LIST", config.image_list, sets)
        tables = [one.rows(np.flatnonzero(np.isin(one.ids, ids))) for one in tables]
    return tuple(
        replace(one, images=table.first(config.max_images))
        for one, table in zip(sets, tables, strict=True)
    )


def excluded_ids(sets: Sequence[DataSet], config: DatasetConfig) -> NDArray[np.int64]:
    """Return the ids of DATASET.EXCLUDE, ascending: of images that may not be opened.

    Args, Raises: as `chosen_images`, of that list.
    """
    if not config.exclude:
        return np.empty(0, np.int64)
    return _known_ids("DATASET.EXCLUDE", config.exclude, sets)


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
        lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
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


def _known_ids(key: str, path: str, sets: Sequence[DataSet]) -> NDArray[np.int64]:
    """Read a list, and refuse ids that no set has."""
    ids = read_image_list(key, path)
    unknown = np.setdiff1d(ids, np.concatenate([one.annotations.images.ids for one in sets]))
    # A cache of more sets has lists of its own.
    unknown = unknown[unknown < id_among_several(0, len(sets))]
    if len(unknown):
        sources = " or ".join(one.annotations.path for one in sets)
        raise ValueError(
            f"{key}: {path} names {len(unknown)} images that are not in {sources}, the first has "
            f"the id {unknown[0]}"
        )
    return ids
