"""RetinaNet: its pyramid, logits, deltas, assignment, losses and decoding.

Everything is computed by detectron2's own `RetinaNet`; this module only calls its parts one by
one, so that the outputs between them can be cached and distilled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from storage import Geometry, Signal

from ..backbones import backbone_identity, neck_of, padding_of
from ..building import of_the_model
from ..ranks import mean_over_ranks
from .base import TrainingStep
from .matching import assigned_anchors
from .outputs import DenseOutputs

# Settings of MODEL.RETINANET that act in training alone: two teachers that differ in them, but
# not in their weights, compute the same outputs.
_TRAINING_ONLY = (
    "BBOX_REG_LOSS_TYPE",
    "FOCAL_LOSS_ALPHA",
    "FOCAL_LOSS_GAMMA",
    "IOU_LABELS",
    "IOU_THRESHOLDS",
    "PRIOR_PROB",
    "SMOOTH_L1_LOSS_BETA",
)
# Where detectron2 begins the running average of positive anchors that losses are divided by.
_INITIAL_NORMALIZER = 100


class RetinaNetFamily:
    """The `DetectorFamily` of detectron2's RetinaNet."""

    name = "RetinaNet"
    architecture = RetinaNet
    replaced: tuple[str, ...] = (
        "forward",
        "forward_inference",
        "forward_training",
        "_transpose_dense_predictions",
    )
    num_classes_key = "MODEL.RETINANET.NUM_CLASSES"

    def size_divisibility(self, cfg: CfgNode) -> int:
        """See `DetectorFamily`."""
        return _layout(cfg).size_divisibility

    def levels(self, cfg: CfgNode) -> dict[str, int]:
        """See `DetectorFamily`."""
        return dict(zip(cfg.MODEL.RETINANET.IN_FEATURES, _layout(cfg).strides, strict=True))

    def pooled_levels(self, cfg: CfgNode) -> tuple[str, ...]:
        """See `DetectorFamily`."""
        return tuple(cfg.MODEL.RETINANET.IN_FEATURES)

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

    def channels(self, cfg: CfgNode) -> int:
        """See `DetectorFamily`."""
        return _layout(cfg).channels

    def geometry(self, cfg: CfgNode, height: int, width: int) -> Geometry:
        """See `DetectorFamily`."""
        strides = _layout(cfg).strides
        # Every level halves the one below and rounds up (3x3 convolution, stride 2, padding 1).
        return Geometry(height, width, tuple((-(-height // s), -(-width // s)) for s in strides))

    def identity(self, cfg: CfgNode) -> dict[str, Any]:
        """See `DetectorFamily`."""
        model = cfg.MODEL
        retinanet = {k: v for k, v in model.RETINANET.items() if k not in _TRAINING_ONLY}
        return {
            "INPUT": {"FORMAT": cfg.INPUT.FORMAT},
            "MODEL": {
                "META_ARCHITECTURE": model.META_ARCHITECTURE,
                **backbone_identity(cfg),
                "PIXEL_MEAN": list(model.PIXEL_MEAN),
                "PIXEL_STD": list(model.PIXEL_STD),
                "ANCHOR_GENERATOR": dict(model.ANCHOR_GENERATOR),
                "RETINANET": retinanet,
            },
            "TEST": {"DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE},
        }

    def pairing(self, cfg: CfgNode) -> dict[str, Any]:
        """See `DetectorFamily`."""
        layout = _layout(cfg)
        generator = cfg.MODEL.ANCHOR_GENERATOR
        return {
            "number of classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "strides of the levels": layout.strides,
            "anchors per position": layout.num_anchors,
            "MODEL.RETINANET.BBOX_REG_WEIGHTS": cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS,
            **{f"MODEL.ANCHOR_GENERATOR.{key}": value for key, value in generator.items()},
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
            anchors=Boxes.cat(model.anchor_generator(features)).tensor,
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
        anchors = [Boxes(outputs.anchors)]
        labels, boxes = model.label_anchors(anchors, targets)
        stacked = torch.stack(labels)
        positive = (stacked >= 0) & (stacked != model.num_classes)
        # RetinaNet.losses concatenates the levels: one list entry for all of them gives the same
        # sums without a second copy of the logits.
        losses = partial(model.losses, anchors, [outputs.logits], labels, [outputs.deltas], boxes)
        if global_counts:
            losses = partial(_losses_by_global_counts, model, losses, positive)
        return TrainingStep(positive=positive, ignored=stacked < 0, losses=losses)

    def assign_boxes(
        self, model: RetinaNet, outputs: DenseOutputs, boxes: Tensor, valid: Tensor, usable: Tensor
    ) -> Tensor:
        """See `DetectorFamily`."""
        return assigned_anchors(model.anchor_matcher, boxes, valid, outputs.anchors, usable)

    def detections(self, model: RetinaNet, outputs: DenseOutputs) -> list[Instances]:
        """See `DetectorFamily`."""
        counts = outputs.anchors_per_level
        anchors = [Boxes(a) for a in outputs.anchors.split(counts)]
        results = []
        for logits, deltas, size in zip(
            outputs.logits, outputs.deltas, outputs.image_sizes, strict=True
        ):
            # Stock forward_inference applies sigmoid_() to views of the head's own outputs and
            # so overwrites them where a level is one position large; sigmoid() does not.
            scores = [x.sigmoid() for x in logits.split(counts)]
            found = model.inference_single_image(anchors, scores, list(deltas.split(counts)), size)
            # At the view's own size this only clips the boxes and drops the empty ones.
            results.append(detector_postprocess(found, *size))
        return results

    def box_transform(self, model: RetinaNet) -> Box2BoxTransform:
        """See `DetectorFamily`."""
        return model.box2box_transform

    def head(self, model: RetinaNet) -> nn.Module:
        """See `DetectorFamily`."""
        return model.head

    def neck(self, model: RetinaNet) -> nn.Module:
        """See `DetectorFamily`."""
        return neck_of(model.backbone)


def _losses_by_global_counts(
    model: RetinaNet, losses: Callable[[], dict[str, Tensor]], positive: Tensor
) -> dict[str, Tensor]:
    """Losses whose normaliser is updated with the positive anchors of all ranks.

    Args:
        model: holds the normaliser.
        losses: its own, normalised by this rank's positives.
        positive: (N, R) bool.
    """
    average = getattr(model, "loss_normalizer", _INITIAL_NORMALIZER)
    found = losses()
    own = model.loss_normalizer
    ranks = comm.get_world_size()
    total = mean_over_ranks(positive.sum().float()).item() * ranks
    model.loss_normalizer = average
    together = model._ema_update("loss_normalizer", max(total, 1), _INITIAL_NORMALIZER)
    return {name: loss * (own * ranks / together) for name, loss in found.items()}


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What the backbone and the anchor generator of a config say of themselves.

    Attributes:
        strides: pixels per position, for every level of the head.
        channels: of every level.
        num_anchors: per position.
        size_divisibility: the model pads images to multiples of this, pixels.
    """

    strides: tuple[int, ...]
    channels: int
    num_anchors: int
    size_divisibility: int


@of_the_model
def _layout(cfg: CfgNode) -> _Layout:
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    levels = [shapes[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
    # The arguments of the head, without its weights; checks that levels have the same anchors.
    head = RetinaNetHead.from_config(cfg, levels)
    return _Layout(
        strides=tuple(level.stride for level in levels),
        channels=levels[0].channels,
        num_anchors=head["num_anchors"],
        size_divisibility=padding_of(backbone),
    )
