"""Does this cache fit this config? Asked before a model is built, answered field by field."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from configs.loader import settings, teacher_config
from dataset.annotations import ImageTable, dataset_fingerprint
from dataset.changes import changed_annotations, changed_images
from dataset.registry import locate
from dataset.subset import planned_images
from dataset.views import augmentation_fingerprint
from detectors import config_fingerprint, family_of, load_model
from detectors.fingerprint import tensors_sha256
from storage import CacheReader, get_preset, read_logs
from storage.canonical import differences
from storage.schema import PIXELS_SAMPLE

logger = logging.getLogger(__name__)

# Fields that a step has no use for, and so does not read.
UNUSED_FIELDS = {"detections", PIXELS_SAMPLE}


def open_cache(cfg: CfgNode) -> CacheReader:
    """Open the cache that a config names, and refuse it unless it is complete and the right one.

    Raises:
        FileNotFoundError: there is no cache.
        ValueError: it is incomplete, damaged, or of another teacher, dataset or augmentation.
    """
    location = settings(cfg).cache.location
    if not location:
        raise ValueError("CACHE.LOCATION is empty; expected the cache that stage1_dump wrote")
    fields = [name for name in CacheReader(location).field_names if name not in UNUSED_FIELDS]
    reader = CacheReader(location, fields)
    differences = list(_differences(cfg, reader))
    if differences:
        raise ValueError(f"{location} is not the cache of this config: {'; '.join(differences)}")
    missing = reader.missing()
    if missing:
        raise ValueError(
            f"{location} is incomplete: {len(missing)} shards are missing, the first is "
            f"{missing[0]}; finish it with: python -m stage1_dump run --config-file ..."
        )
    (dataset,) = cfg.DATASETS.TRAIN
    warning = changed_annotations(read_logs(location), locate(dataset)[0])
    if warning:
        logger.warning("%s", warning)
    return reader


def check_pairing(student: CfgNode, teacher: CfgNode) -> None:
    """Refuse a teacher and a student whose anchors do not correspond one to one.

    Raises:
        ValueError: they differ in classes, levels or anchors.
    """
    ours, theirs = (family_of(c).geometry(c, 256, 256) for c in (student, teacher))
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


def _differences(cfg: CfgNode, reader: CacheReader) -> Iterator[str]:
    manifest = reader.manifest
    cache = settings(cfg).cache
    preset = get_preset(cache.preset, **cache.preset_parameters)
    yield from differing_fields("codec", manifest.codec, preset.codec)
    teacher = teacher_config(cfg)
    yield from differing_fields(
        "teacher.config", manifest.teacher["config"], config_fingerprint(teacher)
    )
    yield from _weights_difference(teacher, manifest.teacher["tensors"])
    images = _planned_images(cfg)
    dataset = list(differing_fields("dataset", manifest.dataset, dataset_fingerprint(images)))
    yield from dataset
    views = settings(cfg).views
    augmentation = list(
        differing_fields("augmentation", manifest.augmentation, augmentation_fingerprint(views))
    )
    yield from augmentation
    if dataset and not augmentation:
        first = np.flatnonzero(reader.index.view == 0)
        yield from changed_images(
            images,
            views,
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
    teacher = teacher.clone()
    teacher.defrost()
    teacher.MODEL.DEVICE = "cpu"
    try:
        ours = tensors_sha256(load_model(teacher))
    except OSError as error:
        logger.info(
            "the teacher's weights are not at hand (%s), so the cache's teacher was checked by its "
            "config alone (weights digest %s)",
            error,
            cached[:16],
        )
        return
    yield from differing_fields("teacher.tensors", cached, ours)


def _planned_images(cfg: CfgNode) -> ImageTable:
    (name,) = cfg.DATASETS.TRAIN
    return planned_images(locate(name)[0], settings(cfg).dataset)
