"""FCOS: one place per position, boxes by the distances to their sides, and centerness.

Everything is computed by detectron2's own `FCOS`; this module only calls its parts one by one, so
that the outputs between them can be cached and distilled.

Shape letters: N images, K classes, R positions of an image (all levels), G boxes of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Instances
from torch import Tensor

from storage import Signal

from .. import fcos_model
from ..building import of_the_model
from ..fcos_lazy import lazy_config
from .anchors import anchors_of
from .base import TrainingStep
from .dense import DenseFamily, Layout, build_layout, losses_by_global_counts
from .dense_detections import dense_detections
from .matching import places_inside
from .outputs import DenseOutputs

# Where detectron2 begins the running average of positive positions that losses are divided by.
_INITIAL_NORMALIZER = 300


@dataclass(frozen=True, kw_only=True)
class FcosOutputs(DenseOutputs):
    """What FCOS says of a batch.

    `deltas` are the distances from a position to the left, top, right and bottom side of its box,
    over the stride, as the head gives them: decoding takes negative ones for 0.

    Attributes:
        centerness: (N, R, 1) logits.
    """

    centerness: Tensor

    def signals(self) -> dict[str, Tensor]:
        """See `DenseOutputs`."""
        return {**super().signals(), "centerness": self.centerness}

    def centres(self) -> Tensor:
        """See `DenseOutputs`."""
        return self.centerness

    def on_levels(self, kept: Sequence[int]) -> Self:
        """See `DenseOutputs`."""
        found = super().on_levels(kept)
        return replace(found, centerness=self.places_on(kept, self.centerness))

    def first(self, count: int) -> Self:
        """See `DenseOutputs`."""
        return replace(super().first(count), centerness=self.centerness[:count])


class FcosFamily(DenseFamily):
    """The `DetectorFamily` of detectron2's FCOS."""

    name = "FCOS"
    architecture = FCOS
    replaced: tuple[str, ...] = (
        "forward",
        "forward_inference",
        "forward_training",
        "_transpose_dense_predictions",
    )
    joining_losses: ClassVar[tuple[Callable[..., Any], ...]] = (FCOS.losses, fcos_model.FCOS.losses)
    num_classes_key = "MODEL.FCOS.NUM_CLASSES"
    class_layers: ClassVar[Mapping[str, int]] = {"cls_score": 1}
    node = "FCOS"
    training_only: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "FCOS": (
            "CENTER_SAMPLING_RADIUS",
            "FOCAL_LOSS_ALPHA",
            "FOCAL_LOSS_GAMMA",
            "PRIOR_PROB",
        )
    }

    def layout(self, cfg: CfgNode) -> Layout:
        """See `DenseFamily`."""
        return _layout(cfg)

    def signals(self, cfg: CfgNode) -> tuple[Signal, ...]:
        """See `DetectorFamily`."""
        return (
            Signal("features", "maps", {"channels": self.channels(cfg)}),
            Signal("scores", "scores", {"anchors": 1, "classes": cfg.MODEL.FCOS.NUM_CLASSES}),
            Signal("deltas", "deltas", {"anchors": 1}),
            Signal("centerness", "scores", {"anchors": 1, "classes": 1}),
        )

    def pairing(self, cfg: CfgNode) -> dict[str, dict[str, Any]]:
        """See `DetectorFamily`."""
        classes, places = self.same_classes(cfg), self.same_places(cfg)
        return {
            "features": {},
            "scores": {**classes, **places},
            # Left, top, right and bottom over the stride, which no box of an anchor is given in.
            "deltas": {**places, "deltas": "distances to the sides"},
            "centerness": places,
            "detections": classes,
        }

    def lazy_config(self, cfg: CfgNode) -> str:
        """See `DetectorFamily`."""
        return lazy_config(cfg)

    def run(self, model: FCOS, batch: list[dict[str, Any]]) -> FcosOutputs:
        """See `DetectorFamily`."""
        images = model.preprocess_image(batch)
        pyramid = model.backbone(images.tensor)
        features = [pyramid[name] for name in model.head_in_features]
        logits, deltas, centerness = (
            torch.cat([permute_to_N_HWA_K(level, width) for level in levels], dim=1)
            for levels, width in zip(model.head(features), (model.num_classes, 4, 1), strict=True)
        )
        return FcosOutputs(
            features=features,
            logits=logits,
            deltas=deltas,
            centerness=centerness,
            anchors=anchors_of(model.anchor_generator, features),
            anchors_per_level=[level.shape[-2] * level.shape[-1] for level in features],
            image_sizes=[(int(h), int(w)) for h, w in images.image_sizes],
        )

    def training_step(
        self,
        model: FCOS,
        outputs: DenseOutputs,
        targets: list[Instances],
        *,
        global_counts: bool = False,
    ) -> TrainingStep:
        """See `DetectorFamily`."""
        assert isinstance(outputs, FcosOutputs)
        anchors = outputs.level_anchors
        labels, boxes = model.label_anchors(anchors, targets)
        stacked = torch.stack(labels)
        # A class of the user's may leave places out, by -1, as RetinaNet does.
        positive = (stacked >= 0) & (stacked != model.num_classes)
        logits, deltas, centerness = (
            self.for_losses(model, outputs, values)
            for values in (outputs.logits, outputs.deltas, outputs.centerness)
        )
        losses = partial(model.losses, anchors, logits, labels, deltas, boxes, centerness)
        if global_counts:
            losses = partial(losses_by_global_counts, model, losses, positive, _INITIAL_NORMALIZER)
        return TrainingStep(positive=positive, losses=losses)

    def assign_boxes(
        self, model: FCOS, outputs: DenseOutputs, boxes: Tensor, valid: Tensor, usable: Tensor
    ) -> Tensor:
        """See `DetectorFamily`.

        Every position whose centre lies in a box: training has a box learnt by fewer, those of one
        level near its centre, but the teacher knows something at each of them.
        """
        return places_inside(boxes, valid, outputs.anchors, usable)

    def detections(self, model: FCOS, outputs: DenseOutputs, rows: int) -> Tensor:
        """See `DetectorFamily`."""
        assert isinstance(outputs, FcosOutputs)
        # Stock forward_inference applies sigmoid_() to the head's own outputs.
        scores = torch.sqrt(outputs.logits.sigmoid() * outputs.centerness.sigmoid())
        return dense_detections(FCOS, model, outputs, scores, rows)

    def comparable_deltas(self, deltas: Tensor) -> Tensor:
        """See `DetectorFamily`; as decoding has them, for which all negative ones are the same."""
        return deltas.relu()


@of_the_model
def _layout(cfg: CfgNode) -> Layout:
    return build_layout(cfg, cfg.MODEL.FCOS.IN_FEATURES, lambda levels: 1)
