"""The training step: a plain detector, its own losses, and the three of distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from configs.nodes import GidConfig
from detectors import DenseOutputs, DetectorFamily, Setup
from detectors.families import TrainingStep
from detectors.readback import Readback

from .adaptation import Adaptation
from .box_head import box_head_losses
from .gism import GeneralInstances, count_kinds, filter_by_mode, kinds_of, propose, select
from .losses import gid_losses, needed_signals, warmup_factor
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
        levels: Sequence[int],
        pooled: Sequence[int],
    ) -> None:
        """Args:

        detector: the student.
        adaptation: maps the student's pyramid to the teacher's channels.
        family: of the student.
        source: the teacher; None trains on ground truth alone.
        pooler: ROIAlign on the pooled levels.
        gid: settings of selection and losses.
        levels: numbers of the student's levels that the teacher's outputs are of.
        pooled: numbers among these, of the levels that features of GIs are pooled from.
        """
        super().__init__()
        self.detector = detector
        self.adaptation = adaptation
        self._family = family
        self._source = source
        self._pooler = pooler
        self._gid = gid
        self._levels = levels
        self._pooled = pooled

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        """Losses by name in training; detections, as the detector gives them, otherwise."""
        if not self.training:
            return self.detector(batch)
        outputs = self._family.run(self.detector, batch)
        targets = [x["instances"].to(outputs.logits.device) for x in batch]
        if self._source is None:
            return self._training_step(outputs, targets).losses()
        device = outputs.logits.device
        # The student's mixed precision is not the teacher's; and stacking codes, which may be
        # float16, is refused or rounds under it.
        with torch.autocast(device.type, enabled=False):
            sizes = outputs.on_levels(self._levels).level_sizes
            teacher = self._source.outputs(batch, sizes, device)
        return self._all_losses(teacher, outputs, targets)

    def run_student(self, batch: list[dict[str, Any]]) -> DenseOutputs:
        """The student's outputs for the loader's items, on the levels that are distilled."""
        return self._family.run(self.detector, batch).on_levels(self._levels)

    def general_instances(self, teacher: TeacherBatch, outputs: DenseOutputs) -> GeneralInstances:
        """GISM on teacher and student: the GIs of each image, of all kinds."""
        return select(teacher, outputs.logits, outputs.deltas, **self._selection(outputs))

    def losses_at(
        self, instances: GeneralInstances, teacher: TeacherBatch, outputs: DenseOutputs
    ) -> dict[str, Tensor]:
        """The weighted distillation losses at GIs, see `gid_losses`, after the warm-up."""
        assigned = self._assigned(instances, teacher, outputs)
        boxes, valid = Readback(instances.boxes, instances.valid).wait()
        return self._losses_at(boxes, valid, assigned, teacher, outputs)

    def _training_step(self, outputs: DenseOutputs, targets: list[Instances]) -> TrainingStep:
        together = self._gid.counts == "global"
        return self._family.training_step(self.detector, outputs, targets, global_counts=together)

    def _all_losses(
        self, teacher: TeacherBatch, outputs: DenseOutputs, targets: list[Instances]
    ) -> dict[str, Tensor]:
        """Own losses, and those of distillation at the boxes of the configured mode.

        The order is that of what a GPU is waited for: GISM is launched before the detector's
        assignment, which waits; and the host looks at the GIs while the detector's losses are
        computed.

        Raises:
            FloatingPointError: outputs are not finite.
        """
        distilled = outputs.on_levels(self._levels)
        found, finite = propose(
            teacher, distilled.logits, distilled.deltas, **self._selection(distilled)
        )
        own = self._training_step(outputs, targets)
        ground_truth = [target.gt_boxes.tensor for target in targets]
        positive = outputs.places_on(self._levels, own.positive)
        kinds = kinds_of(found, positive, ground_truth)
        chosen = filter_by_mode(found, kinds, self._gid.mode)
        reading = Readback(finite.flags, kinds, found.valid, chosen.boxes, chosen.valid)
        assigned = self._assigned(chosen, teacher, distilled)
        losses = own.losses()
        flags, kinds, every, chosen_boxes, valid = reading.wait()
        failure = replace(finite, flags=flags).failure()
        if failure:
            # Other ranks still exchange counts with this one in their forward pass (GID.COUNTS
            # global), so it goes along without GIs before it says so.
            every, valid = torch.zeros_like(every), torch.zeros_like(valid)
        storage = get_event_storage()
        for kind, count in count_kinds(kinds, every).items():
            storage.put_scalar(f"gid/num_{kind}", count / len(targets))
        warmup = warmup_factor(storage.iter, self._gid.warmup_iters)
        losses |= self._losses_at(chosen_boxes, valid, assigned, teacher, distilled, warmup)
        if failure:
            raise failure
        return losses

    def _selection(self, outputs: DenseOutputs) -> dict[str, Any]:
        """What GISM needs besides the outputs of the two sides."""
        return {
            "anchors": outputs.anchors,
            "image_sizes": outputs.image_sizes,
            "centerness": outputs.centres(),
            "box_transform": self._family.box_transform(self.detector),
            "config": self._gid,
        }

    def _assigned(
        self, instances: GeneralInstances, teacher: TeacherBatch, outputs: DenseOutputs
    ) -> Tensor:
        """Places (A,) int64 in N * R of the response loss; a GPU is waited for."""
        assigned = self._family.assign_boxes(
            self.detector, outputs, instances.boxes, instances.valid, teacher.valid
        )
        return assigned.flatten().nonzero().squeeze(1)

    def _losses_at(
        self,
        boxes: Tensor,
        valid: Tensor,
        assigned: Tensor,
        teacher: TeacherBatch,
        outputs: DenseOutputs,
        warmup: float = 1.0,
    ) -> dict[str, Tensor]:
        """The losses at GIs (N, G, 4), those that are valid (N, G), which the host knows."""
        losses = gid_losses(
            config=self._gid,
            teacher=replace(teacher, features=self._pooled_of(teacher.features)),
            rois=self._pooler.place(boxes, valid, outputs.logits.device),
            assigned=assigned,
            student_features=self._pooled_of(outputs.features),
            student_logits=outputs.logits,
            student_deltas=outputs.deltas,
            comparable=self._family.comparable_deltas,
            adaptation=self.adaptation,
            pooler=self._pooler,
            warmup=warmup,
        )
        return losses | box_head_losses(
            config=self._gid,
            family=self._family,
            detector=self.detector,
            outputs=outputs,
            teacher=teacher,
            warmup=warmup,
        )

    def _pooled_of(self, features: list[Tensor]) -> list[Tensor]:
        """The levels that GIs are pooled from; none of a teacher's, where nothing needs them."""
        return [features[level] for level in self._pooled] if features else []


def build_distiller(setup: Setup, detector: nn.Module, teacher: Teacher | None) -> Distiller:
    """Put a student into the step that its config asks for.

    Args:
        setup: the student's.
        detector: the student.
        teacher: whom it learns from, live or cached; None trains on ground truth alone.

    Raises:
        ValueError: GID.ADAPTATION none, with pyramids of different channel counts.
    """
    cfg, family, gid = setup.cfg, setup.family, setup.settings.gid
    names, strides = zip(*family.levels(cfg).items(), strict=True)
    levels: Sequence[int] = range(len(strides))
    kind, channels = "none", family.channels(cfg)
    teacher_channels = channels
    if teacher is not None:
        stored = teacher.stored
        levels = stored.kept
        if "features" in needed_signals(gid):
            kind, teacher_channels = gid.adaptation, stored.family.channels(stored.cfg)
    pooled = [i for i, one in enumerate(levels) if names[one] in family.pooled_levels(cfg)]
    adaptation = Adaptation(
        kind,
        student_channels=channels,
        teacher_channels=teacher_channels,
    ).to(cfg.MODEL.DEVICE)
    return Distiller(
        detector,
        adaptation,
        family=family,
        source=teacher.source(student_format=cfg.INPUT.FORMAT) if teacher else None,
        pooler=GiPooler([strides[levels[one]] for one in pooled], gid),
        gid=gid,
        levels=levels,
        pooled=pooled,
    )
