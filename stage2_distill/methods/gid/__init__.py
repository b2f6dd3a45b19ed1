"""Method `gid`: the three losses of General Instance Distillation at the boxes that GISM selects.

Source: Dai et al., General Instance Distillation for Object Detection, CVPR 2021.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from configs.nodes import GidConfig
from configs.origins import place_of
from detectors import Setup
from detectors.readback import Readback
from stage2_distill.methods.adaptation import Adaptation
from stage2_distill.methods.base import DrawnBoxes, Method, Pair, Step

from .box_head import box_head_losses, check_box_head
from .gism import (
    Finite,
    GeneralInstances,
    count_kinds,
    filter_by_mode,
    kinds_of,
    objects_as_instances,
    propose,
)
from .losses import gid_losses, needed_signals
from .pooling import GiPooler, are_consecutive

# KINDS, in pictures.
_SHOWN_KINDS = ("positive", "semi-positive", "negative", "other")
# Two GIs are the same from this IoU on.
_MATCHING_IOU = 0.9


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """What GISM selected, and whether it may be trusted."""

    instances: GeneralInstances
    finite: Finite


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """The GIs of the configured mode, on their way to the host.

    Attributes:
        finite: what GISM looked for NaN and infinity in.
        reading: its flags, kinds (N, G) and whether each is a GI of all kinds (N, G), boxes
            (N, G, 4) and whether each is one of the mode (N, G).
        places: (A,) int64 in N * R, of the response loss.
    """

    finite: Finite
    reading: Readback
    places: Tensor


class Gid(Method):
    """Selects boxes where teacher and student disagree, and compares features, relations, heads."""

    name = "gid"
    Config = GidConfig
    weights: ClassVar[dict[str, str]] = {
        "feature": "feature_weight",
        "relation": "relation_weight",
        "response_cls": "response_cls_weight",
        "response_reg": "response_reg_weight",
        "box_cls": "box_head_cls_weight",
        "box_reg": "box_head_reg_weight",
    }
    config: GidConfig

    def __init__(self, config: GidConfig, pair: Pair) -> None:
        """See `Method`; GID.ADAPTATION none is refused where the channels differ."""
        super().__init__(config, pair)
        with_features = "features" in needed_signals(config)
        self.adaptation = Adaptation(
            config.adaptation if with_features else "none",
            student_channels=pair.student_channels,
            teacher_channels=pair.teacher_channels if with_features else pair.student_channels,
        )
        # Without features no level is read, and GIs are placed only to be counted.
        self._pooler = GiPooler(_pooled_strides(pair) if with_features else [1], config)
        self._counts: dict[str, float] = {}

    @classmethod
    def needs(cls, config: GidConfig) -> tuple[str, ...]:
        """See `Method`."""
        return needed_signals(config)

    @classmethod
    def check(cls, config: GidConfig, setup: Setup) -> None:
        """See `Method`: of the box head, of a score that the detector has no outputs for, of
        choices by ground truth where images have none, and of levels that leave one out."""
        check_box_head(setup, config)
        for key, usual in (("boxes", "general"), ("mode", "all")):
            if setup.cfg.DATASETS.UNLABELED and getattr(config, key) != usual:
                name = f"GID.{key.upper()}"
                raise ValueError(
                    f"{place_of(setup.cfg, name)}{name} is {getattr(config, key)!r}, which asks "
                    "for ground truth, but images of DATASETS.UNLABELED have none; set it to "
                    f"{usual}, or leave DATASETS.UNLABELED empty"
                )
        signals = [one.name for one in setup.family.signals(setup.cfg)]
        if config.score == "centered" and "centerness" not in signals:
            raise ValueError(
                f"{place_of(setup.cfg, 'GID.SCORE')}GID.SCORE is 'centered', but a"
                f" {setup.family.name} has no centerness; set it to per_class or max"
            )
        if "features" in needed_signals(config):
            _require_no_gap(Pair.of(setup, setup.stored))

    @classmethod
    def without(cls, lacking: Sequence[str]) -> str:
        """See `Method`."""
        if list(lacking) == ["centerness"]:
            return "set GID.SCORE per_class"
        if {"scores", "deltas"} & set(lacking):  # by which GIs are chosen, whatever is compared
            return super().without(lacking)
        return "set the weights of those losses to 0"

    def begin(self, step: Step) -> _Begun:
        """Select the GIs of each image, of all kinds."""
        outputs = step.outputs
        instances, finite = propose(
            step.teacher,
            outputs.logits,
            outputs.deltas,
            anchors=outputs.anchors,
            image_sizes=outputs.image_sizes,
            centerness=outputs.centres(),
            box_transform=step.family.box_transform(step.detector),
            config=self.config,
        )
        if self.config.boxes == "ground_truth":
            instances = objects_as_instances(*step.objects)
        return _Begun(instances=instances, finite=finite)

    def assigned(self, step: Step, begun: _Begun, positive: Tensor) -> _Chosen:
        """Tell the kinds of the GIs, keep those of the mode, and begin to read them back."""
        found, kinds = begun.instances, self._kinds(step, begun, positive)
        chosen = filter_by_mode(found, kinds, self.config.mode)
        reading = Readback(begun.finite.flags, kinds, found.valid, chosen.boxes, chosen.valid)
        places = step.family.assign_boxes(
            step.detector, step.outputs, chosen.boxes, chosen.valid, step.teacher.valid
        )
        return _Chosen(
            finite=begun.finite, reading=reading, places=places.flatten().nonzero().squeeze(1)
        )

    def forward(self, step: Step, chosen: _Chosen) -> dict[str, Tensor]:
        """The three losses, and those of a two-stage detector's box head where they have weights.

        Raises:
            FloatingPointError: outputs are not finite.
        """
        flags, kinds, every, boxes, valid = chosen.reading.wait()
        failure = replace(chosen.finite, flags=flags).failure()
        if failure:
            # Other ranks still exchange counts with this one in their forward pass
            # (DISTILL.COUNTS global), so it goes along without GIs before it says so.
            every, valid = torch.zeros_like(every), torch.zeros_like(valid)
        images = len(step.images)
        self._counts = {
            f"num_{kind}": count / images for kind, count in count_kinds(kinds, every).items()
        }
        outputs, teacher = step.outputs, step.teacher
        terms = gid_losses(
            config=self.config,
            teacher=replace(teacher, features=self._pooled_of(teacher.features)),
            rois=self._pooler.place(boxes, valid, outputs.logits.device),
            assigned=chosen.places,
            student_features=self._pooled_of(outputs.features),
            student_logits=outputs.logits,
            student_deltas=outputs.deltas,
            comparable=step.family.comparable_deltas,
            adaptation=self.adaptation,
            pooler=self._pooler,
            over_ranks=step.global_counts,
        )
        terms |= box_head_losses(
            config=self.config,
            family=step.family,
            detector=step.detector,
            outputs=outputs,
            teacher=teacher,
            over_ranks=step.global_counts,
        )
        if failure:
            raise failure
        return terms

    def metrics(self) -> Mapping[str, float]:
        """Numbers of GIs by kind, means over the images."""
        return self._counts

    def drawn(self, step: Step, begun: _Begun, positive: Tensor) -> list[DrawnBoxes]:
        """The GIs of the mode, numbered from the best: a group for each kind and side."""
        kinds = self._kinds(step, begun, positive)
        chosen = filter_by_mode(begun.instances, kinds, self.config.mode)[0]
        groups = []
        for (number, kind), teachers in itertools.product(enumerate(_SHOWN_KINDS), (True, False)):
            own = chosen.valid & (kinds[0] == number) & (chosen.from_teacher == teachers)
            places = own.nonzero().squeeze(1).tolist()
            scores = chosen.scores[own].tolist()
            groups.append(
                DrawnBoxes(
                    title=f"{int(chosen.valid.sum())} GIs of teacher (solid) and student (dashed)",
                    kind=f"GI, {kind}",
                    boxes=chosen.boxes[own].cpu(),
                    labels=[
                        f"{place + 1} {kind} {score:.2f}"
                        for place, score in zip(places, scores, strict=True)
                    ],
                    style="solid" if teachers else "dashed",
                )
            )
        return groups

    def agreement(self, begun: _Begun, other: _Begun) -> tuple[int, int]:
        """How many GIs some GI of the other side has an IoU of 0.9 or more with."""
        ours, theirs = begun.instances, other.instances
        images = range(len(ours.valid))
        return int(ours.valid.sum()), sum(
            _count_matched(ours.of_image(image), theirs.of_image(image)) for image in images
        )

    def _kinds(self, step: Step, begun: _Begun, positive: Tensor) -> Tensor:
        """(N, G) int64, indices into KINDS; annotated objects are positive."""
        found = begun.instances
        if self.config.boxes == "ground_truth":
            return torch.zeros_like(found.anchor_index)
        return kinds_of(found, positive, [one.gt_boxes.tensor for one in step.targets])

    def _pooled_of(self, features: list[Tensor]) -> list[Tensor]:
        """The levels that GIs are pooled from; none of a teacher's, where nothing needs them."""
        return [features[level] for level in self.pair.pooled] if features else []


def _pooled_strides(pair: Pair) -> list[int]:
    strides = list(pair.levels.values())
    return [strides[one] for one in pair.pooled]


def _require_no_gap(pair: Pair) -> None:
    """See that no level is left out between two others: the size of a GI tells which it is read
    from.

    Raises:
        ValueError: one is, or there is none at all.
    """
    if are_consecutive(_pooled_strides(pair)):
        return
    names = list(pair.levels)
    found = ", ".join(names[one] for one in pair.pooled) or "none"
    raise ValueError(
        f"{place_of(pair.setup.cfg, 'CACHE.LEVELS')}CACHE.LEVELS: gid reads general instances from "
        f"levels that follow on each other, but teacher and student share {found}; name those "
        "between them too, or set GID.FEATURE_WEIGHT and GID.RELATION_WEIGHT to 0"
    )


def _count_matched(ours: GeneralInstances, theirs: GeneralInstances) -> int:
    """Count the GIs of an image that some GI of the other side matches."""
    if not len(ours.boxes) or not len(theirs.boxes):
        return 0
    overlap = pairwise_iou(Boxes(ours.boxes), Boxes(theirs.boxes))
    return int((overlap.amax(dim=1) >= _MATCHING_IOU).sum())
