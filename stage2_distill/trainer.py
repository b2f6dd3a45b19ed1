"""The distill job: detectron2's loop around a `Distiller`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from torch import nn
from torch.utils.data import DataLoader

from configs.loader import settings
from detectors import export_model, family_of
from detectors.trainer import Trainer

from .adaptation import Adaptation
from .data import build_data
from .distiller import Distiller
from .gism import KINDS
from .pooling import GiPooler
from .teacher import open_teacher

logger = logging.getLogger(__name__)

EXPORTED_NAME = "student_final.pth"
_PRINTED_ITERS = 20


class GiPrinter(EventWriter):
    """Adds to the console what detectron2's printer leaves out: the GIs selected, by kind."""

    def __init__(self, max_iter: int) -> None:
        self._max_iter = max_iter

    def write(self) -> None:
        """Print means an image, over the same window as the losses."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            # Writers are called once more after the last step, which was printed already.
            return
        histories = storage.histories()
        counts = [
            f"{kind}: {histories[name].avg(_PRINTED_ITERS):.3g}"
            for kind in KINDS
            if (name := f"gid/num_{kind}") in histories
        ]
        if counts:
            logger.info(" iter: %d  GIs an image: %s", storage.iter, "  ".join(counts))


class DistillTrainer(Trainer):
    """Train a student under the teacher that `TEACHER.SOURCE` names.

    With `TEACHER.SOURCE: none` it is the baseline: the same loop, images, views and schedule on
    ground truth alone.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # All of this is checked before any model is built.
        self._teacher = open_teacher(cfg)
        self._data = build_data(cfg, self._teacher.reader if self._teacher else None)
        super().__init__(cfg)

    def build_train_loader(self, cfg: CfgNode) -> DataLoader[Any]:
        """The loader of views and codes."""
        return self._data.loader

    def wrap_detector(self, detector: nn.Module) -> nn.Module:
        """Put the detector into the distilling step."""
        family, gid = family_of(self.cfg), settings(self.cfg).gid
        teacher_cfg = self._teacher.cfg if self._teacher else self.cfg
        self.adaptation = Adaptation(
            gid.adaptation if self._teacher else "none",
            student_channels=self.cfg.MODEL.FPN.OUT_CHANNELS,
            teacher_channels=teacher_cfg.MODEL.FPN.OUT_CHANNELS,
        ).to(self.cfg.MODEL.DEVICE)
        return Distiller(
            detector,
            self.adaptation,
            family=family,
            source=self._teacher.source(student_format=self.cfg.INPUT.FORMAT)
            if self._teacher
            else None,
            pooler=GiPooler(family.strides(self.cfg), gid),
            gid=gid,
        )

    def extra_checkpointables(self) -> dict[str, Any]:
        """The adaptation layer is a part of the checkpoint, not of the student in it."""
        return {"adaptation": self.adaptation}

    def resume_or_load(self, resume: bool = True) -> None:
        """As the plain trainer, and the sampler goes on where the checkpoint stopped."""
        super().resume_or_load(resume=resume)
        self._data.sampler.first_iter = self.start_iter

    def build_writers(self) -> list[EventWriter]:
        """detectron2's, and the console line of the GIs."""
        return [*super().build_writers(), GiPrinter(self.max_iter)]

    def after_train(self) -> None:
        """Export the student as a plain detectron2 checkpoint."""
        super().after_train()
        if comm.is_main_process() and self.iter >= self.max_iter:
            export_model(self.detector, Path(self.cfg.OUTPUT_DIR) / EXPORTED_NAME)
