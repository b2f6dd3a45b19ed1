"""From a config to everything a dump knows before the teacher is loaded.

Both `plan` and `run` start here, so that what is announced is what is written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from detectron2.config import CfgNode

from configs.schema import Settings
from configs.stock_keys import DUMP, refuse_ignored
from dataset.annotations import ImageTable, dataset_fingerprint
from dataset.reading import load_annotations
from dataset.registry import locate
from dataset.subset import planned_images
from dataset.views import augmentation_fingerprint
from detectors import DetectorFamily, Setup
from detectors.command import register_data
from detectors.datasets import other_classes
from storage import Geometry, Index, Manifest, Preset, get_preset
from storage.schema import common_fields

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
        settings: our own config nodes.
        teacher_cfg, family: the teacher's.
        annotations: the file that names the images.
        images: the planned images.
        image_root: folder that holds them.
        index: the plan.
        shard_records: records of a full shard.
        geometries: one for each bucket, in the order of the index's bucket numbers.
        preset: the codec.
    """

    settings: Settings
    teacher_cfg: CfgNode
    family: DetectorFamily
    annotations: str
    images: ImageTable
    image_root: str
    index: Index
    shard_records: int
    geometries: tuple[Geometry, ...]
    preset: Preset

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
            preset: another codec than that of the config.
        """
        return Manifest.create(
            preset=preset or self.preset,
            geometries=self.geometries,
            shard_records=self.shard_records,
            num_detections=self.teacher_cfg.TEST.DETECTIONS_PER_IMAGE,
            teacher=teacher,
            dataset=dataset_fingerprint(self.images),
            augmentation=augmentation_fingerprint(self.settings.views),
            numerics=numerics,
        )


def prepare(cfg: CfgNode) -> Prepared:
    """Check the config and plan; opens no image and builds no model.

    Raises:
        ValueError: the config cannot be dumped, or the annotations are not COCO.
        FileNotFoundError: the teacher's config, the annotations or the image root is missing.
    """
    refuse_ignored(cfg, DUMP)
    setup = Setup(cfg)
    ours = setup.settings
    if not ours.cache.location:
        raise ValueError("CACHE.LOCATION is empty; expected a folder or s3://bucket/prefix")
    teacher_cfg, family = setup.trained_teacher_cfg, setup.teacher_family
    annotations, image_root = _locate(cfg, teacher_cfg)
    images = planned_images(annotations, ours.dataset)
    preset = get_preset(ours.cache.preset, **ours.cache.preset_parameters)
    shard_records = ours.cache.shard_records or _fitting_records(setup, preset)
    index, geometries = _plan(ours, family, teacher_cfg, images, shard_records)
    return Prepared(
        settings=ours,
        teacher_cfg=teacher_cfg,
        family=family,
        annotations=annotations,
        images=images,
        image_root=image_root,
        index=index,
        shard_records=shard_records,
        geometries=geometries,
        preset=preset,
    )


def with_views(prepared: Prepared, num_views: int) -> Prepared:
    """The same dump with another number of views, as VIEWS.NUM would make it.

    Raises:
        ValueError: the number is beyond the limits of VIEWS.NUM or of a cache.
    """
    views = replace(prepared.settings.views, num=num_views)
    ours = replace(prepared.settings, views=views)
    index, geometries = _plan(
        ours, prepared.family, prepared.teacher_cfg, prepared.images, prepared.shard_records
    )
    return replace(prepared, settings=ours, index=index, geometries=geometries)


def _plan(
    ours: Settings,
    family: DetectorFamily,
    teacher_cfg: CfgNode,
    images: ImageTable,
    shard_records: int,
) -> tuple[Index, tuple[Geometry, ...]]:
    """The records, and the geometry of each of their buckets."""
    config = PlanConfig(
        views=ours.views,
        size_divisibility=family.size_divisibility(teacher_cfg),
        shard_records=shard_records,
    )
    index = make_plan(images, config)
    sizes = [bucket_size(name) for name in index.bucket_names]
    return index, tuple(family.geometry(teacher_cfg, *size) for size in sizes)


def _fitting_records(setup: Setup, preset: Preset) -> int:
    """Records of a shard for CACHE.SHARD_BYTES.

    Of the largest view that the config allows, not of those that are planned, and of its bytes
    before compression: neither views that come later nor better knowledge of a codec may change
    the shards of a cache.
    """
    ours, family, teacher_cfg = setup.settings, setup.teacher_family, setup.teacher_cfg
    step = family.size_divisibility(teacher_cfg)
    sides = (max(ours.views.scales), ours.views.max_size)
    height, width = (-(-side // step) * step for side in sides)
    geometry = family.geometry(teacher_cfg, height, width)
    fields = [*preset.fields(geometry), *common_fields(teacher_cfg.TEST.DETECTIONS_PER_IMAGE)]
    return records_that_fit(
        [field.num_bytes for field in fields],
        shard_bytes=ours.cache.shard_bytes,
        batch=ours.teacher.batch,
    )


def _locate(cfg: CfgNode, teacher_cfg: CfgNode) -> tuple[str, str]:
    """Annotation file and image root of the one training dataset.

    The images are not looked for: `plan` needs none, and who reads them looks.
    """
    warnings = register_data(cfg, use=("TRAIN",), images=False)
    (name,) = cfg.DATASETS.TRAIN
    annotations, image_root = locate(name)
    # No error: a method may do without the teacher's classes.
    classes = other_classes(teacher_cfg, load_annotations(annotations))
    if classes:
        warnings.append(f"of the teacher, {classes}, if students are to have its classes")
    for warning in warnings:
        logger.warning("%s", warning)
    return annotations, image_root
