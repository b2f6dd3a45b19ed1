"""The training step: a plain detector, its own losses, and the three of distillation."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from configs.loader import settings
from configs.schema import GidConfig
from detectors import DenseOutputs, DetectorFamily, family_of

from .adaptation import Adaptation
from .gism import GeneralInstances, count_kinds, filter_by_mode, kinds_of, select
from .losses import assign_anchors, gid_losses, warmup_factor
from .pooling import GiPooler
from .teacher import Teacher, TeacherSource
from .teacher_batch import TeacherBatch


class Distiller(nn.Module):
    """Wraps a student; its training forward gives every loss by name.

    The student stays a plain detectron2 model and knows nothing of this; the adaptation layer is
    trained beside it and left behind at export.
    """

    def __init__(
        self,
        detector: nn.Module,
        adaptation: Adaptation,
        *,
        family: DetectorFamily,
        source: TeacherSource | None,
        pooler: GiPooler,
        gid: GidConfig,
    ) -> None:
        """Args:

        detector: the student.
        adaptation: maps the student's pyramid to the teacher's channels.
        family: of the student.
        source: the teacher; None trains on ground truth alone.
        pooler: ROIAlign on the pyramid.
        gid: settings of selection and losses.
        """
        super().__init__()
        self.detector = detector
        self.adaptation = adaptation
        self._family = family
        self._source = source
        self._pooler = pooler
        self._gid = gid

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        """Losses by name in training; detections, as the detector gives them, otherwise."""
        if not self.training:
            return self.detector(batch)
        outputs = self.run_student(batch)
        targets = [x["instances"].to(outputs.logits.device) for x in batch]
        labels, boxes = self._family.assign(self.detector, outputs, targets)
        losses = self._family.losses(
            self.detector,
            outputs,
            labels,
            boxes,
            global_counts=self._gid.counts == "global",
        )
        if self._source is not None:
            losses.update(self._distillation_losses(batch, outputs, labels, targets))
        return losses

    def run_student(self, batch: list[dict[str, Any]]) -> DenseOutputs:
        """The student's outputs for the loader's items."""
        return self._family.run(self.detector, self._family.preprocess(self.detector, batch))

    def general_instances(
        self, teacher: TeacherBatch, outputs: DenseOutputs
    ) -> list[GeneralInstances]:
        """GISM on teacher and student: the GIs of each image, of all kinds."""
        return select(
            teacher,
            outputs.logits,
            outputs.deltas,
            anchors=outputs.anchors,
            image_sizes=outputs.image_sizes,
            box_transform=self._family.box_transform(self.detector),
            config=self._gid,
        )

    def losses_at(
        self,
        instances: list[GeneralInstances],
        teacher: TeacherBatch,
        outputs: DenseOutputs,
        *,
        warmup: float = 1.0,
    ) -> dict[str, Tensor]:
        """The weighted distillation losses at GIs, see `gid_losses`."""
        matcher = self._family.matcher(self.detector)
        return gid_losses(
            config=self._gid,
            teacher=teacher,
            instances=instances,
            assigned=assign_anchors(matcher, instances, outputs.anchors, teacher.valid),
            student_features=outputs.features,
            student_logits=outputs.logits,
            student_deltas=outputs.deltas,
            adaptation=self.adaptation,
            pooler=self._pooler,
            warmup=warmup,
        )

    def _distillation_losses(
        self,
        batch: list[dict[str, Any]],
        outputs: DenseOutputs,
        labels: Tensor,
        targets: list[Instances],
    ) -> dict[str, Tensor]:
        """GISM on teacher and student, then the losses at the boxes of the configured mode.

        Raises:
            FloatingPointError: outputs are not finite.
        """
        assert self._source is not None
        device = outputs.logits.device
        # The student's mixed precision is not the teacher's; and stacking codes, which may be
        # float16, is refused or rounds under it.
        with torch.autocast(device.type, enabled=False):
            teacher = self._source.outputs(batch, outputs.level_sizes, device)
        failure: FloatingPointError | None = None
        try:
            instances = self.general_instances(teacher, outputs)
        except FloatingPointError as error:
            # Other ranks still exchange counts with this one in their forward pass (GID.COUNTS
            # global), so it goes along without GIs before it says so.
            failure, instances = error, [GeneralInstances.none(device) for _ in targets]
        kinds = kinds_of(
            instances,
            labels,
            [t.gt_boxes.tensor for t in targets],
            num_classes=int(outputs.logits.shape[-1]),
        )
        storage = get_event_storage()
        for kind, count in count_kinds(kinds).items():
            storage.put_scalar(f"gid/num_{kind}", count / len(targets))
        losses = self.losses_at(
            filter_by_mode(instances, kinds, self._gid.mode),
            teacher,
            outputs,
            warmup=warmup_factor(storage.iter, self._gid.warmup_iters),
        )
        if failure is not None:
            raise failure
        return losses


def build_distiller(cfg: CfgNode, detector: nn.Module, teacher: Teacher | None) -> Distiller:
    """Put a student into the step that its config asks for.

    Args:
        cfg: the student's.
        detector: the student.
        teacher: whom it learns from, live or cached; None trains on ground truth alone.

    Raises:
        ValueError: GID.ADAPTATION none, with pyramids of different channel counts.
    """
    family, gid = family_of(cfg), settings(cfg).gid
    adaptation = Adaptation(
        gid.adaptation if teacher else "none",
        student_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        teacher_channels=(teacher.cfg if teacher else cfg).MODEL.FPN.OUT_CHANNELS,
    ).to(cfg.MODEL.DEVICE)
    return Distiller(
        detector,
        adaptation,
        family=family,
        source=teacher.source(student_format=cfg.INPUT.FORMAT) if teacher else None,
        pooler=GiPooler(family.strides(cfg), gid),
        gid=gid,
    )
