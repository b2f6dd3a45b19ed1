"""Is this the right cache? What a config wants, compared with what a cache says of itself.

Each caller names the facts that matter to it, and words the answer its own way. A dump and `check`
want them all: the very images, each in its place. `evaluate` wants annotations of all images of the
cache. A training may use some of them, as long as each one is there and has the same views.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from configs.nodes.views import MAX_VIEWS
from configs.wording import listed
from dataset.annotations import dataset_fingerprint
from dataset.sets import DataSet, stated_sets
from dataset.tables import ImageTable
from dataset.views import Augmentation, View, plan_views
from storage import CacheReader, Index, Manifest, RecordCodec
from storage.canonical import Difference, differences

from .checkpoint import fetched_path, load_model, weights_path
from .fingerprint import config_fingerprint, file_sha256, tensors_sha256
from .places import without_options
from .ranks import on_main_rank
from .setup import Setup

logger = logging.getLogger(__name__)

# Images that a message names; further ones are counted.
_NAMED = 3


def differing_facts(manifest: Manifest, wanted: Mapping[str, Any]) -> list[Difference]:
    """Name every fact in which a cache is another one than the wanted.

    Args:
        manifest: of the cache.
        wanted: members of `Manifest.identity`, those that matter; of its `teacher`, likewise.
    """
    stored = {name: manifest.identity[name] for name in wanted}
    if "teacher" in wanted:
        # Without the weights at hand, a caller has no digest of them.
        stored["teacher"] = {k: v for k, v in stored["teacher"].items() if k in wanted["teacher"]}
    return differences(stored, wanted)


def wanted_facts(setup: Setup, manifest: Manifest, needs: Sequence[str]) -> dict[str, Any]:
    """What must be so of a cache that a config reads, whichever of its images are used.

    Args:
        setup: of the config.
        manifest: of the cache; its digest saves building a model where the weights have it.
        needs: names of the signals that are read, all of which the cache has.
    """
    teacher: dict[str, Any] = {"config": config_fingerprint(setup.teacher_cfg)}
    tensors = on_main_rank(lambda: _weights_digest(setup.teacher_cfg, manifest.teacher["tensors"]))
    if tensors is not None:
        teacher["tensors"] = tensors
    signals = [one for one in setup.teacher_family.signals(setup.teacher_cfg) if one.name in needs]
    codec = RecordCodec.of_preset(setup.preset, signals, manifest.detections["rows"])
    stated_levels = setup.settings.cache.levels
    return {
        "preset": setup.preset.name,
        # Whatever else there is is as good as it is.
        "signals": {**manifest.signals, **codec.identity},
        "levels": setup.stored.levels if stated_levels else manifest.levels,
        "teacher": teacher,
        "augmentation": setup.augmentation.fingerprint,
    }


def dump_differences(
    reader: CacheReader, wanted: Mapping[str, Any], images: ImageTable, augmentation: Augmentation
) -> list[str]:
    """Why a cache is not the one that a dump would write; empty if it is.

    Args:
        reader: of the cache.
        wanted: members of the dump's `Manifest.identity`, `dataset` and `augmentation` among them.
        images: that the dump plans.
        augmentation: that decides its views.
    """
    found = differing_facts(reader.manifest, wanted)
    stored_names, wanted_names = (
        _set_names(one) for one in (reader.manifest.dataset, wanted["dataset"])
    )
    if stored_names != wanted_names:
        # With other sets every image seems to have changed, as ids depend on their order.
        others = [str(one) for one in found if not one.name.startswith("dataset.")]
        return [*others, f"data sets: stored {stored_names}, wanted {wanted_names}"]
    lines = [str(one) for one in found]
    nodes = {one.name.partition(".")[0] for one in found}
    if "dataset" in nodes and "augmentation" not in nodes:
        lines += other_dataset(reader.index, images, augmentation)
    return lines


def other_dataset(index: Index, images: ImageTable, augmentation: Augmentation) -> list[str]:
    """Say how images differ from those of a cache, when the digests of the two are not the same.

    Args: as `changed_images`.

    Returns:
        One sentence for each kind of change; at least one.
    """
    gone = np.setdiff1d(index.image_id, images.ids)
    found = changed_images(index, images, augmentation)
    if len(gone):
        named = listed(map(str, gone[:_NAMED]), shown=_NAMED, total=len(gone))
        found.insert(0, f"{len(gone)} images are gone: {named}")
    return found or ["the ids and the sizes of the views are the same, so file names changed"]


def changed_images(
    index: Index, images: ImageTable, augmentation: Augmentation, num_views: int = MAX_VIEWS
) -> list[str]:
    """Say which images a cache lacks, or holds as they were at another size.

    An image is the same if the index has the seed, height and width of each of its views. Images of
    the cache that are not in use do not matter, and neither do views that only one side has.

    Args:
        index: of the cache.
        images: in use.
        augmentation: the cache's.
        num_views: how many of its views are in use at most.

    Returns:
        One sentence for each kind of change, with the first images; none if there is no change.
    """
    used = range(min(num_views, index.num_views))
    return [*_new(index, images, used), *_resized(index, images, augmentation, used)]


def other_sets(manifest: Manifest, index: Index, sets: Sequence[DataSet]) -> str:
    """Say that a training has other data sets than a cache, or in another order; "" if it has not.

    Ids depend on the position of a set. It is the cache's where it has its name, or its images.

    Args:
        manifest, index: of the cache.
        sets: of the training, with all their images.
    """
    stored = stated_sets(manifest.dataset)
    if len(stored) == len(sets) == 1:
        return ""  # alone it has no name, and may be any that holds its images
    same = len(sets) <= len(stored) and all(
        cached.get("name", one.name) == one.name or _held(index, one) == cached["sha256"]
        for cached, one in zip(stored, sets, strict=False)
    )
    if same:
        return ""
    names = ", ".join(one.name for one in sets)
    return (
        f"data sets: cached {_set_names(manifest.dataset)}, config {names} (a training has those "
        "of its cache, in the same order, and may do without the last ones; DATASET.IMAGE_LIST "
        "chooses among their images; more sets want a dump to another CACHE.LOCATION)"
    )


def _set_names(fingerprint: Mapping[str, Any]) -> str:
    """The names of the data sets in what a manifest says of them, in their order."""
    unnamed = "a single set (its name is not kept)"
    return ", ".join(one.get("name", unnamed) for one in stated_sets(fingerprint))


def _held(index: Index, one: DataSet) -> Any:
    """The digest of the images of a set that a cache holds."""
    held = np.flatnonzero(np.isin(one.images.ids, index.image_id))
    return dataset_fingerprint(one.images.rows(held))["sha256"]


def _new(index: Index, images: ImageTable, used: range) -> Iterator[str]:
    held = np.full(len(images), True)
    for view in used:
        held &= np.isin(images.ids, index.image_id[_records_of(index, view)])
    rows = np.flatnonzero(~held)
    if len(rows):
        names = (_name(images, row) for row in rows[:_NAMED])
        yield f"{len(rows)} images are new: {listed(names, shown=_NAMED, total=len(rows))}"


def _resized(
    index: Index, images: ImageTable, augmentation: Augmentation, used: range
) -> Iterator[str]:
    changed = np.full(len(images), False)
    named: list[str] = []
    for view in used:
        records = _records_of(index, view)
        _, rows, places = np.intersect1d(
            images.ids, index.image_id[records], assume_unique=True, return_indices=True
        )
        now = plan_views(
            augmentation,
            image_ids=images.ids[rows],
            view=view,
            heights=images.heights[rows],
            widths=images.widths[rows],
        )
        before = places + records.start
        other = (
            (now.seed != index.seed[before])
            | (now.height != index.height[before])
            | (now.width != index.width[before])
        ) & ~changed[rows]
        changed[rows[other]] = True
        for one in np.flatnonzero(other)[: _NAMED - len(named)]:
            named.append(f"{_name(images, rows[one])}, {_change(index, before[one], now[one])}")
    if named:
        total = int(changed.sum())
        yield f"{total} images have another size: {listed(named, shown=_NAMED, total=total)}"


def _records_of(index: Index, view: int) -> slice:
    """The records of a view, which lie together."""
    start, stop = np.searchsorted(index.view, [view, view + 1]).tolist()
    return slice(start, stop)


def _change(index: Index, record: np.intp, now: View) -> str:
    before = f"{index.width[record]} x {index.height[record]}"
    if (index.width[record], index.height[record]) == (now.width, now.height):
        return f"whose view {now.view} had the seed {index.seed[record]}, not {now.seed}"
    return f"whose view {now.view} was {before} pixels and would now be {now.width} x {now.height}"


def _name(images: ImageTable, row: np.intp) -> str:
    return f"{images.ids[row]} ({images.file_names[row]})"


def _weights_digest(teacher: CfgNode, cached: str) -> str | None:
    """The digest of the teacher's weights, as `teacher_fingerprint` has it; None without weights.

    Nothing is fetched, and no model is built unless the tensors of the file alone have another
    digest than the cached one: then the model decides, in case that detectron2 converts them.
    """
    name = teacher.MODEL.WEIGHTS
    path = _weights_at_hand(name, cached)
    if path is None:
        return None
    digest = file_sha256(path)
    if digest == cached:
        return digest
    teacher = teacher.clone()
    teacher.MODEL.DEVICE = "cpu"
    return tensors_sha256(load_model(teacher).state_dict())


def _weights_at_hand(name: str, cached: str) -> str | None:
    """The local file of weights that a config names; says so where there is none."""
    consequence = (
        f"the cache's teacher was checked by its config alone, its weights (digest {cached[:16]}) "
        "were not compared"
    )
    if not name:
        logger.info("TEACHER.WEIGHTS is empty: %s", consequence)
        return None
    if "://" in name:
        path = fetched_path(name)
        if path is None:
            logger.info("TEACHER.WEIGHTS %s was not fetched here: %s", name, consequence)
        return path
    try:
        return without_options(weights_path(name))
    except FileNotFoundError:
        logger.warning(
            "TEACHER.WEIGHTS %s: there is no such file, so %s; correct the path, or set "
            "TEACHER.WEIGHTS '' where the teacher lies on another machine",
            name,
            consequence,
        )
        return None
