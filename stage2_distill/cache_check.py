"""Does this cache fit this config? Asked before a model is built, answered field by field."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from dataset.changes import changed_annotations
from dataset.registry import locate
from dataset.tables import ImageTable
from detectors import Setup
from detectors.identity import changed_images, differing_facts, wanted_facts
from storage import CacheReader, read_logs
from storage.schema import NOT_FOR_TRAINING

logger = logging.getLogger(__name__)


def open_cache(setup: Setup, images: Sequence[dict[str, Any]]) -> CacheReader:
    """Open the cache that a config names, and refuse it unless it is complete and the right one.

    Args:
        setup: of the config.
        images: detectron2's dataset dicts of the images in use, which may be some of the cache's.

    Raises:
        FileNotFoundError: there is no cache.
        ValueError: it is incomplete, damaged, or of another teacher or augmentation, or it lacks
            an image in use.
    """
    location = setup.settings.cache.location
    if not location:
        raise ValueError("CACHE.LOCATION is empty; expected the cache that stage1_dump wrote")
    fields = [name for name in CacheReader(location).field_names if name not in NOT_FOR_TRAINING]
    reader = CacheReader(location, fields)
    differences = list(_differences(setup, reader, images))
    if differences:
        raise ValueError(f"{location} is not the cache of this config: {'; '.join(differences)}")
    missing = reader.missing()
    if missing:
        raise ValueError(
            f"{location} is incomplete: {len(missing)} shards are missing, the first is "
            f"{missing[0]}; finish it with: python -m stage1_dump run --config-file ..."
        )
    (dataset,) = setup.cfg.DATASETS.TRAIN
    warning = changed_annotations(read_logs(location), locate(dataset)[0])
    if warning:
        logger.warning("%s", warning)
    return reader


def check_pairing(setup: Setup) -> None:
    """Refuse a teacher and a student whose anchors do not correspond one to one.

    Raises:
        ValueError: they differ in classes, levels or anchors.
    """
    student, teacher = setup.cfg, setup.teacher_cfg
    ours = setup.family.geometry(student, 256, 256)
    theirs = setup.teacher_family.geometry(teacher, 256, 256)
    facts = [
        ("number of classes", ours.num_classes, theirs.num_classes),
        ("pyramid levels", ours.level_sizes, theirs.level_sizes),
        ("anchors a position", ours.num_anchors, theirs.num_anchors),
    ]
    generators = (student.MODEL.ANCHOR_GENERATOR, teacher.MODEL.ANCHOR_GENERATOR)
    facts += [
        (f"MODEL.ANCHOR_GENERATOR.{k}", generators[0][k], generators[1][k]) for k in generators[0]
    ]
    different = [f"{name}: student {a}, teacher {b}" for name, a, b in facts if a != b]
    if different:
        raise ValueError("teacher and student do not match: " + "; ".join(different))


def _differences(
    setup: Setup, reader: CacheReader, images: Sequence[dict[str, Any]]
) -> Iterator[str]:
    views, cached_views = setup.settings.views, reader.index.num_views
    found = differing_facts(reader.manifest, wanted_facts(setup, reader.manifest))
    yield from (f"{one.name}: cached {one.stored}, config {one.wanted}" for one in found)
    if cached_views < views.num:
        yield (
            f"VIEWS.NUM: cached {cached_views}, config {views.num} (add views with: python -m "
            "stage1_dump run)"
        )
    if any(one.name.startswith("augmentation.") for one in found):
        return  # every image would seem to have changed
    changes = changed_images(reader.index, _table(images), views)
    if changes:
        yield (
            f"{'; '.join(changes)} (dump a cache of these annotations to another CACHE.LOCATION, "
            "or leave such images out with DATASET.IMAGE_LIST)"
        )


def _table(images: Sequence[dict[str, Any]]) -> ImageTable:
    by_id = sorted(images, key=itemgetter("image_id"))
    return ImageTable(
        ids=np.array([one["image_id"] for one in by_id], np.int64),
        file_names=[one["file_name"] for one in by_id],
        heights=np.array([one["height"] for one in by_id], np.int32),
        widths=np.array([one["width"] for one in by_id], np.int32),
    )
