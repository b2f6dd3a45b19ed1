"""Does this cache fit this config? Asked before a model is built, answered field by field."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from dataset.annotations import ImageTable, dataset_fingerprint
from dataset.changes import changed_annotations, changed_images
from dataset.registry import locate
from dataset.subset import planned_images
from dataset.views import Augmentation
from detectors import Setup, config_fingerprint, load_model, weights_path
from detectors.checkpoint import fetched_path
from detectors.fingerprint import file_sha256, tensors_sha256
from detectors.ranks import on_main_rank
from storage import CacheReader, RecordCodec, read_logs
from storage.canonical import differences
from storage.location import Location
from storage.metadata import read_root

logger = logging.getLogger(__name__)


def open_cache(setup: Setup, needs: Sequence[str]) -> CacheReader:
    """Open the cache that a config names, and refuse it unless it is complete and the right one.

    Args:
        setup: of a distillation config.
        needs: names of the signals that are read.

    Raises:
        FileNotFoundError: there is no cache.
        ValueError: it is incomplete, damaged, or of another teacher, dataset or augmentation, or
            lacks a signal.
    """
    location = setup.settings.cache.location
    if not location:
        raise ValueError("CACHE.LOCATION is empty; expected the cache that stage1_dump wrote")
    signals = read_root(Location(location)).manifest.signals
    lacking = [name for name in needs if name not in signals]
    if lacking:
        raise ValueError(
            f"{location} lacks the signal {lacking[0]}, which the losses of this config need; it "
            f"has {', '.join(signals)}. Dump another with CACHE.SIGNALS (), or set the weights of "
            "those losses to 0"
        )
    reader = CacheReader(location, needs)
    differences = list(_differences(setup, reader, needs))
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
    """Refuse a teacher and a student whose places do not correspond one to one.

    Raises:
        ValueError: they differ in what their families say that they must share.
    """
    ours = setup.family.pairing(setup.cfg)
    theirs = setup.teacher_family.pairing(setup.teacher_cfg)
    different = [
        f"{fact}: student {ours.get(fact)}, teacher {theirs.get(fact)}"
        for fact in ours | theirs
        if ours.get(fact) != theirs.get(fact)
    ]
    if different:
        raise ValueError("teacher and student do not match: " + "; ".join(different))


def _differences(setup: Setup, reader: CacheReader, needs: Sequence[str]) -> Iterator[str]:
    manifest = reader.manifest
    views = setup.settings.views
    signals = [one for one in setup.teacher_family.signals(setup.teacher_cfg) if one.name in needs]
    wanted = RecordCodec.of_preset(setup.preset, signals, manifest.detections["rows"]).identity
    yield from differing_fields("preset", manifest.preset, setup.preset.name)
    stored = {name: manifest.signals[name] for name in wanted}
    yield from differing_fields("signals", stored, wanted)
    yield from differing_fields(
        "teacher.config", manifest.teacher["config"], config_fingerprint(setup.teacher_cfg)
    )
    yield from _weights_difference(setup.teacher_cfg, manifest.teacher["tensors"])
    images = _planned_images(setup)
    dataset = list(differing_fields("dataset", manifest.dataset, dataset_fingerprint(images)))
    yield from dataset
    augmentation = Augmentation.of_config(views)
    different = list(
        differing_fields("augmentation", manifest.augmentation, augmentation.fingerprint)
    )
    yield from different
    if dataset and not different:
        first = np.flatnonzero(reader.index.view == 0)
        yield from changed_images(
            images,
            augmentation,
            ids=reader.index.image_id[first],
            heights=reader.index.height[first],
            widths=reader.index.width[first],
        )
    cached_views = reader.index.num_views
    if cached_views < views.num:
        yield (
            f"VIEWS.NUM: cached {cached_views}, config {views.num} (add views with: python -m "
            "stage1_dump run)"
        )


def differing_fields(name: str, cached: Any, ours: Any) -> Iterator[str]:
    """Name every field in which two JSON values differ, with both values."""
    for difference in differences({name: cached}, {name: ours}):
        yield f"{difference.name}: cached {difference.stored}, config {difference.wanted}"


def _weights_difference(teacher: CfgNode, cached: str) -> Iterator[str]:
    """Compare the weights where they are at hand; the student's machine need not have them."""
    ours = on_main_rank(lambda: _weights_digest(teacher, cached))
    if ours is not None:
        yield from differing_fields("teacher.tensors", cached, ours)


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
    teacher.defrost()
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
        return weights_path(name).partition("?")[0]
    except FileNotFoundError:
        logger.warning(
            "TEACHER.WEIGHTS %s: there is no such file, so %s; correct the path, or set "
            "TEACHER.WEIGHTS '' where the teacher lies on another machine",
            name,
            consequence,
        )
        return None


def _planned_images(setup: Setup) -> ImageTable:
    (name,) = setup.cfg.DATASETS.TRAIN
    return planned_images(locate(name)[0], setup.settings.dataset)
