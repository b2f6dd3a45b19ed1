"""Whether the data of a config can be used: asked once, before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from configs.loader import settings
from dataset.image_files import require_images
from dataset.reading import Annotations
from dataset.registry import adopt, is_coco, locate, register_folder
from dataset.subset import chosen_images

from .family import num_classes

_SHOWN_CATEGORIES = 5


@dataclass(frozen=True, kw_only=True)
class _Set:
    """A dataset in use: the key that names it, its name, and what it holds."""

    key: str
    name: str
    annotations: Annotations


def check_datasets(cfg: CfgNode, *, use: Collection[str], images: bool) -> list[str]:
    """See `detectors.command.register_data`."""
    if cfg.DATASET.FOLDER:
        needed = [name for key in use for name in cfg.DATASETS[key]]
        register_folder(cfg.DATASET.FOLDER, needed=needed)
    used = _used(cfg, use)
    compared = used
    # Evaluation needs no training set; the main rank alone reads it, as it may be large.
    if "TRAIN" not in use and comm.is_main_process():
        compared = [*_readable(cfg, "TRAIN"), *used]
    for other in compared[1:]:
        _check_same_categories(compared[0], other)
    for one in used if images else ():
        _find_images(cfg, one)
    return list(dict.fromkeys(line for one in used for line in one.annotations.warnings()))


def _used(cfg: CfgNode, use: Collection[str]) -> list[_Set]:
    return [one for key in ("TRAIN", "TEST") if key in use for one in _adopted(cfg, key)]


def _adopted(cfg: CfgNode, key: str) -> Iterator[_Set]:
    for name in cfg.DATASETS[key]:
        # A dataset that a user's own code registered need not be a COCO file.
        if name not in DatasetCatalog or is_coco(name):
            yield _Set(key=f"DATASETS.{key}", name=name, annotations=adopt(name))


def _readable(cfg: CfgNode, key: str) -> list[_Set]:
    """Those that are there and hold; none if any does not, as the command has no use for them."""
    try:
        return list(_adopted(cfg, key))
    except (OSError, ValueError):
        return []


def _find_images(cfg: CfgNode, one: _Set) -> None:
    table = one.annotations.images
    if one.key == "DATASETS.TRAIN":
        table = chosen_images(table, one.annotations.path, settings(cfg).dataset)
    require_images(table, locate(one.name)[1])


def require_classes(cfg: CfgNode, use: Collection[str]) -> None:
    """Refuse a model with another number of classes than its data have categories.

    With fewer, objects of the last categories would be trained as background.

    Args:
        cfg: a model's config, its data registered.
        use: which of DATASETS.TRAIN and DATASETS.TEST the command uses.

    Raises:
        ValueError: the numbers differ; the message names key and file.
    """
    for one in _used(cfg, use)[:1]:  # the others have the same categories
        message = other_classes(cfg, one.annotations)
        if message:
            raise ValueError(message)


def other_classes(cfg: CfgNode, annotations: Annotations) -> str:
    """Say that a model has another number of classes than a file has categories; else ""."""
    found = num_classes(cfg)
    categories = annotations.categories
    if found is None or found[1] == len(categories):
        return ""
    counts = annotations.category_counts
    empty = "; those without objects count too" if 0 in counts.values() else ""
    return (
        f"{found[0]} is {found[1]}, but {annotations.path} has {len(categories)} categories: "
        f"{_shown(categories, counts)}{empty}; set {found[0]} {len(categories)}"
    )


def _check_same_categories(first: _Set, other: _Set) -> None:
    """Refuse sets whose categories are not the same, as classes are numbered by their ids."""
    ours, theirs = first.annotations.categories, other.annotations.categories
    different = [
        f"{key} is {_named(ours, key)} there and {_named(theirs, key)} here"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if different:
        more = ", ..." if len(different) > _SHOWN_CATEGORIES else ""
        raise ValueError(
            f"{other.annotations.path} ({other.key}): its categories are not those of "
            f"{first.annotations.path} ({first.key}): "
            + ", ".join(different[:_SHOWN_CATEGORIES])
            + f"{more}; write the same list `categories` into both"
        )


def _named(categories: dict[int, str], key: int) -> str:
    return repr(categories[key]) if key in categories else "no category"


def _shown(categories: dict[int, str], counts: dict[int, int]) -> str:
    parts = [
        f"{key} {name!r}" + ("" if counts[key] else " (without objects)")
        for key, name in list(categories.items())[:_SHOWN_CATEGORIES]
    ]
    return ", ".join([*parts, "..."] if len(categories) > _SHOWN_CATEGORIES else parts)
