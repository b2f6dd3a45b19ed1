"""Whether the data of a config can be used: asked once, before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from configs.wording import listed
from dataset.image_files import require_images
from dataset.reading import Annotations
from dataset.registry import adopt, is_coco, locate, register_folder
from dataset.sets import find_set
from dataset.subset import chosen_images, excluded_ids

from .families import num_classes
from .setup import Setup

_SHOWN_CATEGORIES = 5


@dataclass(frozen=True, kw_only=True)
class _Set:
    """A dataset in use: the key that names it, its name, and what it holds."""

    key: str
    name: str
    annotations: Annotations

    @property
    def categories(self) -> _Categories:
        """Its categories, and where they are from."""
        source = f"{self.annotations.path} ({self.key})"
        return _Categories(source=source, names=self.annotations.categories)


@dataclass(frozen=True, kw_only=True)
class _Categories:
    """Id to name, and where that is from."""

    source: str
    names: dict[int, str]


def check_datasets(cfg: CfgNode, *, use: Collection[str], images: bool) -> list[str]:
    """See `detectors.command.register_data`."""
    # Who trains on the ones has use for the others; plain training refuses them.
    unlabelled = cfg.DATASETS.UNLABELED if "TRAIN" in use else ()
    if cfg.DATASET.FOLDER:
        needed = [name for key in use for name in cfg.DATASETS[key]]
        register_folder(cfg.DATASET.FOLDER, needed=[*needed, *unlabelled])
    used = _used(cfg, use)
    _require_objects(used)
    for name in unlabelled:
        adopt(name, labelled=False)
    compared = [one.categories for one in used]
    if "TRAIN" not in use and compared:
        compared = [*_training_categories(cfg, compared[0]), *compared]
    for other in compared[1:]:
        _check_same_categories(compared[0], other)
    if images:
        _find_images(cfg, used)
    return list(dict.fromkeys(line for one in used for line in one.annotations.warnings()))


def _used(cfg: CfgNode, use: Collection[str]) -> list[_Set]:
    return [
        one for key in ("TRAIN", "TEST") if key in use for one in _adopted(key, cfg.DATASETS[key])
    ]


def _adopted(key: str, names: Iterable[str]) -> Iterator[_Set]:
    for name in names:
        # Formats of other evaluators, such as that of LVIS, are left to detectron2.
        if name not in DatasetCatalog or is_coco(name):
            yield _Set(key=f"DATASETS.{key}", name=name, annotations=adopt(name))


def _require_objects(used: Iterable[_Set]) -> None:
    """Refuse an evaluation set in which there is nothing to find: it has no AP, not one of 0."""
    for one in used:
        # `all` is true of no objects, too. To train on, images without objects are of use.
        if one.key == "DATASETS.TEST" and one.annotations.objects.crowds.all():
            raise ValueError(
                f"{one.annotations.path} ({one.key}): expected objects to find, got "
                f"{len(one.annotations.images)} images without any, of which there is no AP; name "
                "a set with objects, or, to train without evaluation, none: ()"
            )


def _training_categories(cfg: CfgNode, tested: _Categories) -> Iterator[_Categories]:
    """Those of the training sets, for a command that has no use for them: if they are at hand.

    Of detectron2's own datasets they are known without a file. Other files may be large, so that
    the main rank alone reads them.
    """
    for name in cfg.DATASETS.TRAIN:
        known = _known_categories(name)
        if known == tested.names or not comm.is_main_process():
            continue
        try:
            yield from (one.categories for one in _adopted("TRAIN", [name]))
        except FileNotFoundError:
            if known:
                yield _Categories(source=f"{name} (DATASETS.TRAIN)", names=known)
        except ValueError:
            continue  # who trains on it will be told


def _known_categories(name: str) -> dict[int, str]:
    """Id to name, as far as detectron2 knows it without reading a file."""
    metadata = MetadataCatalog.get(name)
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
    classes = metadata.get("thing_classes", [])
    return {key: classes[number] for key, number in ids.items()} if classes else {}


def _find_images(cfg: CfgNode, used: Iterable[_Set]) -> None:
    labelled, dataset = len(cfg.DATASETS.TRAIN), Setup(cfg).settings.dataset
    trained = {one.name for one in used if one.key == "DATASETS.TRAIN"}
    names = (*cfg.DATASETS.TRAIN, *(cfg.DATASETS.UNLABELED if trained else ()))
    sets = [
        find_set(names, number, labelled=number < labelled)
        for number, name in enumerate(names)
        if name in trained or number >= labelled
    ]
    if sets:
        left_out = excluded_ids(sets, dataset)
        for chosen in chosen_images(sets, dataset):
            require_images(chosen.images.without(left_out), chosen.image_root)
    for one in used:
        if one.key == "DATASETS.TEST":
            require_images(one.annotations.images, locate(one.name)[1])


def require_fit(cfg: CfgNode, use: Collection[str]) -> None:
    """Refuse a model that its data do not fit.

    With fewer classes than there are categories, objects of the last ones would be trained as
    background; masks and keypoints would be asked for that nobody reads.

    Args:
        cfg: a model's config, its data registered.
        use: which of DATASETS.TRAIN and DATASETS.TEST the command uses.

    Raises:
        ValueError: the model learns more than boxes, or has another number of classes than the
            data have categories; the message names the key.
    """
    for key in ("MASK_ON", "KEYPOINT_ON"):
        if "TRAIN" in use and cfg.MODEL[key]:
            raise ValueError(f"MODEL.{key} is True, but boxes are all that is trained; set False")
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


def _check_same_categories(first: _Categories, other: _Categories) -> None:
    """Refuse sets whose categories are not the same, as classes are numbered by their ids."""
    ours, theirs = first.names, other.names
    different = [
        f"{key} is {_named(ours, key)} there and {_named(theirs, key)} here"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if different:
        raise ValueError(
            f"{other.source}: its categories are not those of {first.source}: "
            + listed(different, shown=_SHOWN_CATEGORIES)
            + "; write the same list `categories` into both, and number the `category_id` of each "
            "object by it"
        )


def _named(categories: dict[int, str], key: int) -> str:
    return repr(categories[key]) if key in categories else "no category"


def _shown(categories: dict[int, str], counts: dict[int, int]) -> str:
    parts = [
        f"{key} {name!r}" + ("" if counts[key] else " (without objects)")
        for key, name in categories.items()
    ]
    return listed(parts, shown=_SHOWN_CATEGORIES)
