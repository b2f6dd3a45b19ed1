"""The training step: a plain detector, its own losses, and the three of distillation."""

from __future__ import annotations

from typing import Any

from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from configs.schema import GidConfig
from detectors import DenseOutputs, DetectorFamily

from .adaptation import Adaptation
from .gism import GeneralInstances, count_kinds, filter_by_mode, kinds_of, select
from .losses import assign_anchors, gid_losses, warmup_factor
from .pooling import GiPooler
from .teacher import TeacherSource
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
        images = self._family.preprocess(self.detector, batch)
        outputs = self._family.run(self.detector, images)
        targets = [x["instances"].to(images.tensor.device) for x in batch]
        labels, boxes = self._family.assign(self.detector, outputs, targets)
        losses = self._family.losses(self.detector, outputs, labels, boxes)
        if self._source is not None:
            losses.update(self._distillation_losses(batch, outputs, labels, targets))
        return losses

    def _distillation_losses(
        self,
        batch: list[dict[str, Any]],
        outputs: DenseOutputs,
        labels: Tensor,
        targets: list[Instances],
    ) -> dict[str, Tensor]:
        """GISM on teacher and student, then the losses at its boxes."""
        assert self._source is not None
        teacher = self._source.outputs(batch, outputs.level_sizes, outputs.logits.device)
        instances = self._select(teacher, outputs, labels, targets)
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
            warmup=warmup_factor(get_event_storage().iter, self._gid.warmup_iters),
        )

    def _select(
        self,
        teacher: TeacherBatch,
        outputs: DenseOutputs,
        labels: Tensor,
        targets: list[Instances],
    ) -> list[GeneralInstances]:
        """General instances of the configured mode; logs how many of which kind there were."""
        instances = select(
            teacher,
            outputs.logits,
            outputs.deltas,
            anchors=outputs.anchors,
            image_sizes=outputs.image_sizes,
            box_transform=self._family.box_transform(self.detector),
            config=self._gid,
        )
        kinds = kinds_of(
            instances,
            labels,
            [t.gt_boxes.tensor for t in targets],
            num_classes=int(outputs.logits.shape[-1]),
        )
        storage = get_event_storage()
        for kind, count in count_kinds(kinds).items():
            storage.put_scalar(f"gid/num_{kind}", count / len(targets))
        return filter_by_mode(instances, kinds, self._gid.mode)
