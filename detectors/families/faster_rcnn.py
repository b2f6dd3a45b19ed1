"""Faster R-CNN with FPN: pyramid, RPN, proposals, box head, assignment, losses and detections.

Everything is computed by the parts of detectron2's own `GeneralizedRCNN`, called one by one, in its
order: what they draw from the random generator is the same. The places of the head are the anchors
of the RPN, and their one class is `object`. Of a Mask or Keypoint R-CNN the boxes are taken alone.

Shape letters: N images, R anchors of an image (all levels), K classes, P rows for proposals,
Q proposals of one image, C channels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from storage import Signal

from ..building import of_the_model
from ..detections import pack_detections, side_by_side
from ..ranks import mean_over_ranks
from .anchors import anchors_of
from .base import TrainingStep
from .dense import DenseFamily, Layout, build_layout
from .matching import assigned_anchors
from .outputs import DenseOutputs
from .two_stage import NUM_PROPOSALS, RcnnOutputs, SecondStage, by_class

logger = logging.getLogger(__name__)


class FasterRcnnFamily(DenseFamily):
    """The `DetectorFamily` of detectron2's GeneralizedRCNN with FPN.

    It also answers `box_head_outputs`, see `TwoStageFamily`.
    """

    name = "FasterRCNN"
    architecture = GeneralizedRCNN
    replaced: tuple[str, ...] = ("forward", "inference", "_postprocess")
    num_classes_key = "MODEL.ROI_HEADS.NUM_CLASSES"
    class_layers: ClassVar[Mapping[str, int]] = {"cls_score": 1, "bbox_pred": 4}
    node = "RPN"
    # A mask or keypoint head changes nothing of what is computed.
    training_only: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ANCHOR_GENERATOR": (),
        "PROPOSAL_GENERATOR": (),
        "RPN": (
            "BATCH_SIZE_PER_IMAGE",
            "BBOX_REG_LOSS_TYPE",
            "BBOX_REG_LOSS_WEIGHT",
            "BOUNDARY_THRESH",
            "IOU_LABELS",
            "IOU_THRESHOLDS",
            "LOSS_WEIGHT",
            "POSITIVE_FRACTION",
            "POST_NMS_TOPK_TRAIN",
            "PRE_NMS_TOPK_TRAIN",
            "SMOOTH_L1_BETA",
        ),
        "ROI_HEADS": (
            "BATCH_SIZE_PER_IMAGE",
            "IOU_LABELS",
            "IOU_THRESHOLDS",
            "POSITIVE_FRACTION",
            "PROPOSAL_APPEND_GT",
        ),
        "ROI_BOX_HEAD": (
            "BBOX_REG_LOSS_TYPE",
            "BBOX_REG_LOSS_WEIGHT",
            "FED_LOSS_FREQ_WEIGHT_POWER",
            "FED_LOSS_NUM_CLASSES",
            "SMOOTH_L1_BETA",
            "TRAIN_ON_PRED_BOXES",
            "USE_FED_LOSS",
        ),
    }

    def layout(self, cfg: CfgNode) -> Layout:
        """See `DenseFamily`."""
        return _layout(cfg)

    def pooled_levels(self, cfg: CfgNode) -> tuple[str, ...]:
        """See `DetectorFamily`: those of the box head, for the level above repeats the last one."""
        return tuple(cfg.MODEL.ROI_HEADS.IN_FEATURES)

    def signals(self, cfg: CfgNode) -> tuple[Signal, ...]:
        """See `DetectorFamily`."""
        layout = _layout(cfg)
        anchors, rows = {"anchors": layout.num_anchors}, {"rows": NUM_PROPOSALS}
        columns = cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1
        return (
            Signal("features", "maps", {"channels": layout.channels}),
            Signal("scores", "scores", {**anchors, "classes": 1}),
            Signal("deltas", "deltas", anchors),
            Signal("proposals", "boxes", rows),
            Signal("proposal_scores", "rows", {**rows, "columns": columns}),
            Signal("proposal_deltas", "rows", {**rows, "columns": 4}),
        )

    def pairing(self, cfg: CfgNode) -> dict[str, dict[str, Any]]:
        """See `DetectorFamily`."""
        model, classes, places = cfg.MODEL, self.same_classes(cfg), self.same_anchors(cfg)
        head = model.ROI_BOX_HEAD
        # Under a loss of sigmoids the background's logit, which a softmax needs, is not trained.
        sigmoid = {"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": head.USE_SIGMOID_CE}
        return {
            "features": {},
            # Of objectness: two detectors of other classes agree on what it means.
            "scores": {"what is scored": "objectness", **places},
            "deltas": {**places, "MODEL.RPN.BBOX_REG_WEIGHTS": model.RPN.BBOX_REG_WEIGHTS},
            "proposals": {},
            "proposal_scores": {**classes, **sigmoid},
            "proposal_deltas": {
                **classes,
                "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": head.BBOX_REG_WEIGHTS,
            },
            "detections": classes,
        }

    def run(self, model: GeneralizedRCNN, batch: list[dict[str, Any]]) -> RcnnOutputs:
        """See `DetectorFamily`; the second stage is run in evaluation alone."""
        images = model.preprocess_image(batch)
        pyramid = model.backbone(images.tensor)
        rpn = model.proposal_generator
        features = [pyramid[name] for name in rpn.in_features]
        level_logits, level_deltas = rpn.rpn_head(features)
        logits = [permute_to_N_HWA_K(x, 1) for x in level_logits]
        deltas = [permute_to_N_HWA_K(x, 4) for x in level_deltas]
        outputs = RcnnOutputs(
            features=features,
            logits=torch.cat(logits, dim=1),
            deltas=torch.cat(deltas, dim=1),
            anchors=anchors_of(rpn.anchor_generator, features),
            anchors_per_level=[int(x.shape[1]) for x in logits],
            image_sizes=[(int(h), int(w)) for h, w in images.image_sizes],
            pyramid=pyramid,
            second=None,
        )
        if model.training:
            return outputs
        return _with_second_stage(model, outputs)

    def training_step(
        self,
        model: GeneralizedRCNN,
        outputs: DenseOutputs,
        targets: list[Instances],
        *,
        global_counts: bool = False,
    ) -> TrainingStep:
        """See `DetectorFamily`. The labels are the RPN's before it samples from them.

        The RPN divides by a constant per image, and the box head takes the mean over the proposals
        that a rank samples: with `global_counts`, of the images, and over the proposals, of all
        ranks. What each rank samples stays its own draw, so that only the weight of the images is
        the same for any number of ranks.
        """
        labels, matched = _label(model.proposal_generator, outputs, targets)
        return TrainingStep(
            positive=labels == 1,
            losses=partial(_losses, model, outputs, targets, labels, matched, global_counts),
        )

    def assign_boxes(
        self,
        model: GeneralizedRCNN,
        outputs: DenseOutputs,
        boxes: Tensor,
        valid: Tensor,
        usable: Tensor,
    ) -> Tensor:
        """See `DetectorFamily`."""
        rpn = model.proposal_generator
        found = assigned_anchors(rpn.anchor_matcher, boxes, valid, outputs.anchors, usable)
        outside = [_outside(rpn, outputs.anchors, size) for size in outputs.image_sizes]
        return found & ~torch.stack(outside)

    def detections(self, model: GeneralizedRCNN, outputs: DenseOutputs, rows: int) -> Tensor:
        """See `DetectorFamily`; of outputs of evaluation."""
        second = _narrowed(outputs).second
        assert second is not None, "in training there is no second stage"
        predictor = model.roi_heads.box_predictor
        found, _ = predictor.inference((second.logits, second.deltas), second.proposals)
        return pack_detections(side_by_side(found), outputs.image_sizes, rows)

    def box_transform(self, model: GeneralizedRCNN) -> Box2BoxTransform:
        """See `DetectorFamily`."""
        return model.proposal_generator.box2box_transform

    def head(self, model: GeneralizedRCNN) -> nn.Module:
        """See `DetectorFamily`."""
        heads = model.roi_heads
        return nn.ModuleDict(
            {
                "rpn_head": model.proposal_generator.rpn_head,
                "box_head": heads.box_head,
                "box_predictor": heads.box_predictor,
            }
        )

    def box_head_outputs(
        self, model: GeneralizedRCNN, outputs: DenseOutputs, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `TwoStageFamily`."""
        pyramid = _narrowed(outputs).pyramid
        logits, deltas = _box_head(model, pyramid, [Boxes(one) for one in boxes])
        rows = boxes.shape[:2]
        return logits.unflatten(0, rows), by_class(deltas, logits).unflatten(0, rows)


def _narrowed(outputs: DenseOutputs) -> RcnnOutputs:
    """The outputs of this family's `run`, which alone are handed to its methods."""
    assert isinstance(outputs, RcnnOutputs)
    return outputs


def _box_head(
    model: GeneralizedRCNN, pyramid: dict[str, Tensor], boxes: list[Boxes]
) -> tuple[Tensor, Tensor]:
    """Logits and deltas of the box head, as its predictor gives them, images in order."""
    heads = model.roi_heads
    pooled = heads.box_pooler([pyramid[name] for name in heads.box_in_features], boxes)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    return logits, deltas


def _with_second_stage(model: GeneralizedRCNN, outputs: RcnnOutputs) -> RcnnOutputs:
    proposals = _proposals(model.proposal_generator, outputs)
    logits, deltas = _box_head(model, outputs.pyramid, [one.proposal_boxes for one in proposals])
    second = SecondStage(proposals=proposals, logits=logits.float(), deltas=deltas.float())
    return replace(outputs, second=second)


def _proposals(rpn: RPN, outputs: DenseOutputs) -> list[Instances]:
    """The RPN's proposals, as many as its mode says."""
    found: list[Instances] = rpn.predict_proposals(
        outputs.level_anchors,
        # NMS on a CPU wants the boxes' own type.
        outputs.by_level(outputs.logits[..., 0].float()),
        outputs.by_level(outputs.deltas),
        outputs.image_sizes,
    )
    return found


@torch.no_grad()
def _label(
    rpn: RPN, outputs: DenseOutputs, targets: Sequence[Instances]
) -> tuple[Tensor, list[Tensor]]:
    """Match anchors to objects, as `RPN.label_and_sample_anchors` does before it samples.

    Returns:
        Labels (N, R): 1 for an object, 0 for background, -1 for neither. And N times (R, 4), the
        object that each anchor meets best; zeros where there is none.
    """
    anchors = Boxes(outputs.anchors)
    labels, matched = [], []
    for target, size in zip(targets, outputs.image_sizes, strict=True):
        number, label = rpn.anchor_matcher(pairwise_iou(target.gt_boxes, anchors))
        labels.append(label.masked_fill(_outside(rpn, outputs.anchors, size), -1))
        objects = target.gt_boxes.tensor
        matched.append(objects[number] if len(objects) else torch.zeros_like(outputs.anchors))
    return torch.stack(labels), matched


def _outside(rpn: RPN, anchors: Tensor, size: tuple[int, int]) -> Tensor:
    """(R,) bool: which anchors RPN.BOUNDARY_THRESH takes out of an image; none where it is -1."""
    limit = rpn.anchor_boundary_thresh
    if limit < 0:
        return torch.zeros_like(anchors[:, 0], dtype=torch.bool)
    return ~Boxes(anchors).inside_box(size, limit)


def _losses(
    model: GeneralizedRCNN,
    outputs: DenseOutputs,
    targets: list[Instances],
    labels: Tensor,
    matched: list[Tensor],
    global_counts: bool,
) -> dict[str, Tensor]:
    """Sample anchors, then proposals, and compute both stages' losses, in the stock order."""
    rpn = model.proposal_generator
    sampled = [rpn._subsample_labels(one) for one in labels.clone()]
    logits = outputs.logits[..., 0]
    of_rpn = rpn.losses([Boxes(outputs.anchors)], [logits], sampled, [outputs.deltas], matched)
    proposals = _proposals(rpn, outputs)
    chosen, of_boxes = model.roi_heads(None, _narrowed(outputs).pyramid, proposals, targets)
    if global_counts:
        # Ranks may differ in what they sample, and in how many of their images have labels.
        own = logits.new_tensor([sum(map(len, chosen)), len(targets)], dtype=torch.float32)
        share = own / mean_over_ranks(own)
        of_boxes = {name: loss * share[0] for name, loss in of_boxes.items()}
        of_rpn = {name: loss * share[1] for name, loss in of_rpn.items()}
    return {**of_boxes, **of_rpn}


@of_the_model
def _layout(cfg: CfgNode) -> Layout:
    for key, what in (("MASK_ON", "mask"), ("KEYPOINT_ON", "keypoint")):
        if cfg.MODEL[key]:
            logger.warning("MODEL.%s: the boxes are used alone, the %s head is ignored", key, what)
    # The arguments of the head, without its weights; checks that levels have the same anchors.
    return build_layout(
        cfg,
        cfg.MODEL.RPN.IN_FEATURES,
        lambda levels: int(StandardRPNHead.from_config(cfg, levels)["num_anchors"]),
    )
