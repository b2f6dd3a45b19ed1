"""RetinaNet: its pyramid, logits, deltas, assignment, losses and decoding.

Everything is computed by detectron2's own `RetinaNet`; this module only calls its parts one by
one, so that the outputs between them can be cached and distilled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.structures import Instances
from torch import Tensor

from storage import Signal

from ..building import of_the_model
from .anchors import anchors_of
from .base import TrainingStep
from .dense import DenseFamily, Layout, build_layout, losses_by_global_counts
from .dense_detections import dense_detections
from .matching import assigned_anchors
from .outputs import DenseOutputs

# Where detectron2 begins the running average of positive anchors that losses are divided by.
_INITIAL_NORMALIZER = 100


class RetinaNetFamily(DenseFamily):
    """The `DetectorFamily` of detectron2's RetinaNet."""

    name = "RetinaNet"
    architecture = RetinaNet
    replaced: tuple[str, ...] = (
        "forward",
        "forward_inference",
        "forward_training",
        "_transpose_dense_predictions",
    )
    joining_losses: ClassVar[tuple[Callable[..., Any], ...]] = (RetinaNet.losses,)
    num_classes_key = "MODEL.RETINANET.NUM_CLASSES"
    class_layers: ClassVar[Mapping[str, int]] = {"cls_score": 1}
    node = "RETINANET"
    training_only: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "RETINANET": (
            "BBOX_REG_LOSS_TYPE",
            "FOCAL_LOSS_ALPHA",
            "FOCAL_LOSS_GAMMA",
            "IOU_LABELS",
            "IOU_THRESHOLDS",
            "PRIOR_PROB",
            "SMOOTH_L1_LOSS_BETA",
        ),
        "ANCHOR_GENERATOR": (),
    }

    def layout(self, cfg: CfgNode) -> Layout:
        """See `DenseFamily`."""
        return _layout(cfg)

    def signals(self, cfg: CfgNode) -> tuple[Signal, ...]:
        """See `DetectorFamily`."""
        layout = _layout(cfg)
        anchors = {"anchors": layout.num_anchors}
        classes = cfg.MODEL.RETINANET.NUM_CLASSES
        return (
            Signal("features", "maps", {"channels": layout.channels}),
            Signal("scores", "scores", {**anchors, "classes": classes}),
            Signal("deltas", "deltas", anchors),
        )

    def pairing(self, cfg: CfgNode) -> dict[str, dict[str, Any]]:
        """See `DetectorFamily`."""
        classes, places = self.same_classes(cfg), self.same_anchors(cfg)
        weights = {"MODEL.RETINANET.BBOX_REG_WEIGHTS": cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS}
        return {
            "features": {},
            "scores": {**classes, **places},
            "deltas": {**places, **weights},
            "detections": classes,
        }

    def run(self, model: RetinaNet, batch: list[dict[str, Any]]) -> DenseOutputs:
        """See `DetectorFamily`."""
        images = model.preprocess_image(batch)
        pyramid = model.backbone(images.tensor)
        features = [pyramid[name] for name in model.head_in_features]
        level_logits, level_deltas = model.head(features)
        logits = [permute_to_N_HWA_K(x, model.num_classes) for x in level_logits]
        deltas = [permute_to_N_HWA_K(x, 4) for x in level_deltas]
        return DenseOutputs(
            features=features,
            logits=torch.cat(logits, dim=1),
            deltas=torch.cat(deltas, dim=1),
            anchors=anchors_of(model.anchor_generator, features),
            anchors_per_level=[int(x.shape[1]) for x in logits],
            image_sizes=[(int(h), int(w)) for h, w in images.image_sizes],
        )

    def training_step(
        self,
        model: RetinaNet,
        outputs: DenseOutputs,
        targets: list[Instances],
        *,
        global_counts: bool = False,
    ) -> TrainingStep:
        """See `DetectorFamily`."""
        anchors = outputs.level_anchors
        labels, boxes = model.label_anchors(anchors, targets)
        stacked = torch.stack(labels)
        positive = (stacked >= 0) & (stacked != model.num_classes)
        logits, deltas = (
            self.for_losses(model, outputs, values) for values in (outputs.logits, outputs.deltas)
        )
        losses = partial(model.losses, anchors, logits, labels, deltas, boxes)
        if global_counts:
            losses = partial(losses_by_global_counts, model, losses, positive, _INITIAL_NORMALIZER)
        return TrainingStep(positive=positive, losses=losses)

    def assign_boxes(
        self, model: RetinaNet, outputs: DenseOutputs, boxes: Tensor, valid: Tensor, usable: Tensor
    ) -> Tensor:
        """See `DetectorFamily`."""
        return assigned_anchors(model.anchor_matcher, boxes, valid, outputs.anchors, usable)

    def detections(self, model: RetinaNet, outputs: DenseOutputs, rows: int) -> Tensor:
        """See `DetectorFamily`."""
        # Stock forward_inference applies sigmoid_() to views of the head's own outputs and so
        # overwrites them where a level is one position large; sigmoid() does not.
        return dense_detections(RetinaNet, model, outputs, outputs.logits.sigmoid(), rows)


@of_the_model
def _layout(cfg: CfgNode) -> Layout:
    # The arguments of the head, without its weights; checks that levels have the same anchors.
    return build_layout(
        cfg,
        cfg.MODEL.RETINANET.IN_FEATURES,
        lambda levels: int(RetinaNetHead.from_config(cfg, levels)["num_anchors"]),
    )
