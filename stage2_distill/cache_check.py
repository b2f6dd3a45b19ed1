"""Does this cache fit this config? Asked before a model is built, answered field by field."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from dataset.changes import changed_annotations
from dataset.sets import DataSet, find_sets
from dataset.tables import ImageTable
from detectors import Setup
from detectors.identity import changed_images, differing_facts, other_sets, wanted_facts
from detectors.images import leave_out
from storage import CacheReader, read_logs
from storage.location import Location
from storage.metadata import read_root

from .methods import DETECTIONS, chosen_methods, needs_of

logger = logging.getLogger(__name__)


def open_cache(setup: Setup, images: Sequence[dict[str, Any]]) -> CacheReader:
    """Open the cache that a config names, and refuse it unless it is complete and the right one.

    Args:
        setup: of the config.
        images: detectron2's dataset dicts of the images in use, which may be some of the cache's.

    Returns:
        A reader of what the methods need.

    Raises:
        FileNotFoundError: there is no cache.
        ValueError: it is incomplete, damaged, or of another teacher or augmentation, or it lacks
            an image in use or a signal.
    """
    location = setup.settings.cache.location
    if not location:
        raise ValueError("CACHE.LOCATION is empty; expected the cache that stage1_dump wrote")
    needs = [name for name in needs_of(setup) if name != DETECTIONS]
    manifest = read_root(Location(location)).manifest
    signals = manifest.signals
    for method, config in chosen_methods(setup):
        if manifest.preset in method.too_coarse:
            raise ValueError(
                f"{location} has the preset {manifest.preset}, which is too coarse for the method "
                f"{method.name}: {method.too_coarse[manifest.preset]}. Dump a cache in balanced, "
                f"or leave {method.name} out of DISTILL.METHODS"
            )
        lacking = [one for one in method.needs(config) if one in needs and one not in signals]
        if lacking:
            raise ValueError(
                f"{location} lacks the signal {lacking[0]}, which the method {method.name} needs; "
                f"it has {', '.join(signals)}. Dump another with CACHE.SIGNALS (), or "
                f"{method.without(lacking)}"
            )
    reader = CacheReader(location, needs)
    differences = list(_differences(setup, reader, images, needs))
    if differences:
        raise ValueError(f"{location} is not the cache of this config: {'; '.join(differences)}")
    # A shard is of one view: those of views that a dump is adding are for later trainings.
    missing = [
        shard
        for shard in reader.missing()
        if reader.index.view[reader.table.records_of(shard)[0]] < setup.settings.views.num
    ]
    if missing:
        raise ValueError(
            f"{location} is incomplete: {len(missing)} shards are missing, the first is "
            f"{missing[0]}; finish it with: python -m stage1_dump run --config-file ..."
        )
    notes = read_logs(location)
    for number, one in enumerate(_sets(setup)):
        warning = changed_annotations(notes, one.path, number)
        if warning:
            logger.warning("%s", warning)
    return reader


def held_images(images: list[dict[str, Any]], reader: CacheReader | None) -> list[dict[str, Any]]:
    """The images to train on without those that a cache leaves out, of which a warning tells.

    Raises:
        ValueError: no image is left.
    """
    if reader is None or not images:
        return images
    return leave_out(images, reader.manifest.excluded, f"the cache {reader.location}")


def _differences(
    setup: Setup, reader: CacheReader, images: Sequence[dict[str, Any]], needs: Sequence[str]
) -> Iterator[str]:
    views, cached_views = setup.settings.views, reader.index.num_views
    found = differing_facts(reader.manifest, wanted_facts(setup, reader.manifest, needs))
    yield from (one.worded("cached", "config") for one in found)
    if cached_views < views.num:
        yield (
            f"VIEWS.NUM: cached {cached_views}, config {views.num} (add views with: python -m "
            "stage1_dump run)"
        )
    if any(one.name.startswith("augmentation.") for one in found):
        return  # every image would seem to have changed
    other = other_sets(reader.manifest, reader.index, _sets(setup))
    if other:
        yield other
        return
    changes = changed_images(reader.index, _table(images), setup.augmentation, views.num)
    if changes:
        yield (
            f"{'; '.join(changes)} (dump a cache of these annotations to another CACHE.LOCATION, "
            "or leave such images out with DATASET.IMAGE_LIST)"
        )


def _sets(setup: Setup) -> tuple[DataSet, ...]:
    return find_sets(setup.cfg.DATASETS.TRAIN, setup.cfg.DATASETS.UNLABELED)


def _table(images: Sequence[dict[str, Any]]) -> ImageTable:
    by_id = sorted(images, key=itemgetter("image_id"))
    return ImageTable(
        ids=np.array([one["image_id"] for one in by_id], np.int64),
        file_names=[one["file_name"] for one in by_id],
        heights=np.array([one["height"] for one in by_id], np.int32),
        widths=np.array([one["width"] for one in by_id], np.int32),
    )
