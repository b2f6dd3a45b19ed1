"""What follows from a config, worked out once by a command or a trainer, and handed down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from detectron2.config import CfgNode

from configs.loader import settings, teacher_config
from configs.nodes import Settings
from detectors import DetectorFamily, family_of


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

    @property
    def trained_teacher_cfg(self) -> CfgNode:
        """`teacher_cfg`, for those who load the teacher; refuses an empty TEACHER.WEIGHTS."""
        teacher = self.teacher_cfg
        if not teacher.MODEL.WEIGHTS:
            # Without this, random weights would pass for a teacher.
            raise ValueError("TEACHER.WEIGHTS: expected the trained teacher's weights, got ''")
        return teacher
