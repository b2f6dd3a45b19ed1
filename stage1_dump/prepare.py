"""From a config to everything a dump knows before the teacher is loaded.

Both `plan` and `run` start here, so that what is announced is what is written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from configs.nodes import DatasetConfig, Settings
from configs.stock_keys import DUMP, refuse_ignored
from dataset.sets import DataSet, find_sets, joined, sets_fingerprint
from dataset.subset import chosen_images, excluded_ids
from dataset.tables import ImageTable
from detectors import Setup
from detectors.command import register_data
from detectors.datasets import other_classes
from storage import Geometry, Index, Manifest, Preset, RecordCodec
from storage.index import ShardTable

from .plan import (
    PlanConfig,
    bucket_size,
    make_plan,
    records_that_fit,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dump, ready to start.

    Attributes:
        setup: the config and what follows from it.
        sets: the data sets, with the planned images of each.
        images: the planned images of all sets.
        excluded: ids of those of them that are left out, ascending: they keep their records in the
            plan, which are not written.
        index: the plan.
        shard_records: records of a full shard.
        geometries: one for each bucket, in the order of the index's bucket numbers.
    """

    setup: Setup
    sets: tuple[DataSet, ...]
    images: ImageTable
    excluded: tuple[int, ...]
    index: Index
    shard_records: int
    geometries: tuple[Geometry, ...]

    @property
    def settings(self) -> Settings:
        """Our own config nodes."""
        return self.setup.settings

    @property
    def teacher_cfg(self) -> CfgNode:
        """The teacher's config."""
        return self.setup.teacher_cfg

    @cached_property
    def table(self) -> ShardTable:
        """Which records each shard of the plan has."""
        return ShardTable(self.index, self.shard_records)

    def written_images(self) -> Iterator[tuple[ImageTable, str]]:
        """Of each set, the planned images without those that are left out, and their folder."""
        for one in self.sets:
            yield one.images.without(self.excluded), one.image_root

    def codec(self, preset: Preset | None = None) -> RecordCodec:
        """What encodes a record, with the config's preset or another."""
        return _codec(self.setup, preset or self.setup.preset)

    def manifest(
        self,
        *,
        teacher: Mapping[str, Any],
        numerics: Mapping[str, Any],
        preset: Preset | None = None,
    ) -> Manifest:
        """Describe the cache.

        Args:
            teacher: `detectors.teacher_fingerprint` of the loaded teacher.
            numerics: what `numerics.fixed_numerics` gave.
            preset: another than that of the config.
        """
        preset = preset or self.setup.preset
        return Manifest.create(
            preset=preset.name,
            codec=self.codec(preset),
            levels=self.setup.stored.levels,
            num_classes=self.setup.stored.num_classes,
            geometries=self.geometries,
            shard_records=self.shard_records,
            teacher=teacher,
            dataset=sets_fingerprint(self.sets),
            augmentation=self.setup.augmentation.fingerprint,
            numerics=numerics,
            excluded=self.excluded,
        )


def prepare(cfg: CfgNode) -> Prepared:
    """Check the config and plan; opens no image and builds no model.

    Raises:
        ValueError: the config cannot be dumped, or the annotations are not COCO.
        FileNotFoundError: the teacher's config, the annotations, the image root or a list of images
            is missing.
    """
    refuse_ignored(cfg, DUMP)
    setup = Setup(cfg)
    ours = setup.settings
    if not ours.cache.location:
        raise ValueError("CACHE.LOCATION is empty; expected a folder or s3://bucket/prefix")
    sets = chosen_images(_find_sets(setup), ours.dataset)
    images = joined(sets)
    excluded = _excluded(sets, images, ours.dataset)
    shard_records = _shard_records(setup)
    index = _plan(setup, images, shard_records)
    return Prepared(
        setup=setup,
        sets=sets,
        images=images,
        excluded=excluded,
        index=index,
        shard_records=shard_records,
        geometries=_geometries(setup, index),
    )


def with_views(prepared: Prepared, num_views: int) -> Prepared:
    """The same dump with another number of views, as VIEWS.NUM would make it.

    Raises:
        ValueError: the number is beyond the limits of VIEWS.NUM or of a cache.
    """
    setup = _with_keys(prepared.setup, VIEWS={"NUM": num_views})
    index = _plan(setup, prepared.images, prepared.shard_records)
    return replace(prepared, setup=setup, index=index, geometries=_geometries(setup, index))


def with_part(prepared: Prepared, part: Mapping[str, Any]) -> Prepared:
    """The same dump of a part of each record: other SIGNALS or LEVELS in the node CACHE."""
    setup = _with_keys(prepared.setup, CACHE=part)
    index, shard_records = prepared.index, _shard_records(setup)
    if shard_records != prepared.shard_records:
        index = _plan(setup, prepared.images, shard_records)
    return replace(
        prepared,
        setup=setup,
        index=index,
        shard_records=shard_records,
        geometries=_geometries(setup, index),
    )


def _with_keys(setup: Setup, **nodes: Mapping[str, Any]) -> Setup:
    """The same config with other values of some keys."""
    cfg = setup.cfg.clone()
    cfg.defrost()
    for node, values in nodes.items():
        cfg[node].update(values)
    return Setup(cfg)


def _excluded(
    sets: Sequence[DataSet], images: ImageTable, config: DatasetConfig
) -> tuple[int, ...]:
    """The ids of the planned images that are left out."""
    excluded = np.intersect1d(images.ids, excluded_ids(sets, config))
    if len(images) and len(excluded) == len(images):
        raise ValueError(
            f"DATASET.EXCLUDE: {config.exclude} names all {len(images)} images; none is left"
        )
    return tuple(excluded.tolist())


def _plan(setup: Setup, images: ImageTable, shard_records: int) -> Index:
    config = PlanConfig(
        views=setup.settings.views,
        size_divisibility=setup.teacher_family.size_divisibility(setup.teacher_cfg),
        shard_records=shard_records,
    )
    return make_plan(images, config)


def _geometries(setup: Setup, index: Index) -> tuple[Geometry, ...]:
    return tuple(setup.stored.geometry(*bucket_size(name)) for name in index.bucket_names)


def _shard_records(setup: Setup) -> int:
    return setup.settings.cache.shard_records or _fitting_records(setup)


def _fitting_records(setup: Setup) -> int:
    """Records of a shard for CACHE.SHARD_BYTES.

    Of the largest view that the config allows, not of those that are planned, and of its bytes
    before compression: neither views that come later nor better knowledge of a codec may change
    the shards of a cache.
    """
    step = setup.teacher_family.size_divisibility(setup.teacher_cfg)
    height, width = (-(-side // step) * step for side in setup.augmentation.largest_size)
    arrays = _codec(setup, setup.preset).arrays(setup.stored.geometry(height, width))
    return records_that_fit(
        [array.num_bytes for array in arrays],
        shard_bytes=setup.settings.cache.shard_bytes,
        batch=setup.settings.teacher.batch,
    )


def _codec(setup: Setup, preset: Preset) -> RecordCodec:
    kept = setup.teacher_cfg.TEST.DETECTIONS_PER_IMAGE
    return RecordCodec.of_preset(preset, setup.stored.signals, kept)


def _find_sets(setup: Setup) -> tuple[DataSet, ...]:
    """The training data sets, those without labels last, with all their images.

    The images are not looked for: `plan` needs none, and who reads them looks.
    """
    cfg, teacher_cfg = setup.cfg, setup.trained_teacher_cfg
    warnings = register_data(cfg, use=("TRAIN",), images=False)
    sets = find_sets(cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELED)
    # No error: a method may do without the teacher's classes, and TEACHER.CLASSES match others. All
    # labelled sets have the same ones.
    classes = other_classes(teacher_cfg, sets[0].annotations)
    if setup.class_map is None and classes:
        warnings.append(
            f"of the teacher, {classes}, if students are to have its classes; or name those that "
            "it has in TEACHER.CLASSES"
        )
    for warning in warnings:
        logger.warning("%s", warning)
    return sets
