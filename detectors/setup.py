"""What follows from a config, worked out once by a command or a trainer, and handed down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from configs.loader import settings, teacher_config
from configs.nodes import Settings
from configs.stock_limits import value_of
from dataset.views import Augmentation
from detectors import DetectorFamily, family_of
from storage import Preset, get_preset

from .classes import ClassMap
from .stored import Stored


@dataclass(frozen=True, eq=False)
class Setup:
    """A config of a student or a dump, which changes no more, and what follows from it.

    Each part is worked out when it is first wanted, so that a command meets the errors of those
    alone that it uses: ValueError and FileNotFoundError, as `configs.loader` and `family_of`.

    Attributes:
        cfg: the config.
    """

    cfg: CfgNode

    def __reduce__(self) -> tuple[Any, ...]:
        # A spawned worker imports the user's modules before it needs a family of theirs.
        return Setup, (self.cfg,)

    @cached_property
    def settings(self) -> Settings:
        """Our own nodes, validated."""
        return settings(self.cfg)

    @cached_property
    def family(self) -> DetectorFamily:
        """The family of the config's own detector."""
        return family_of(self.cfg)

    @cached_property
    def teacher_cfg(self) -> CfgNode:
        """The teacher's config; its MODEL.WEIGHTS is empty where TEACHER.WEIGHTS is."""
        return teacher_config(self.cfg)

    @cached_property
    def teacher_family(self) -> DetectorFamily:
        """The family of the teacher."""
        return family_of(self.teacher_cfg)

    @cached_property
    def class_map(self) -> ClassMap | None:
        """Which of the teacher's classes those of the registered data are; None: the same."""
        names = self.settings.teacher.classes
        if not names:
            return None
        dataset = self.cfg.DATASETS.TRAIN[0]  # further ones have the same categories
        return ClassMap.of_names(
            MetadataCatalog.get(dataset).thing_classes,
            names,
            key="TEACHER.CLASSES",
            data=f"{dataset} (DATASETS.TRAIN)",
            num_classes=value_of(self.teacher_cfg, self.teacher_family.num_classes_key),
        )

    @cached_property
    def matched_teacher_cfg(self) -> CfgNode:
        """`teacher_cfg`, with as many classes as the student has of it."""
        if self.class_map is None:
            return self.teacher_cfg
        matched = self.teacher_cfg.clone()
        key = self.teacher_family.num_classes_key
        matched.merge_from_list([key, len(self.class_map.columns)])
        return matched

    @cached_property
    def stored(self) -> Stored:
        """What a cache keeps of the teacher."""
        cache = self.settings.cache
        return Stored.of(
            self.teacher_cfg, self.teacher_family, signals=cache.signals, levels=cache.levels
        )

    @cached_property
    def preset(self) -> Preset:
        """The table that chooses the codecs of a cache."""
        return get_preset(self.settings.cache.preset, **self.settings.cache.preset_options)

    @cached_property
    def augmentation(self) -> Augmentation:
        """What decides the views."""
        return Augmentation.of_config(self.settings.views)

    @property
    def trained_teacher_cfg(self) -> CfgNode:
        """`teacher_cfg`, for those who load the teacher; refuses an empty TEACHER.WEIGHTS."""
        teacher = self.teacher_cfg
        if not teacher.MODEL.WEIGHTS:
            # Without this, random weights would pass for a teacher.
            raise ValueError("TEACHER.WEIGHTS: expected the trained teacher's weights, got ''")
        return teacher
