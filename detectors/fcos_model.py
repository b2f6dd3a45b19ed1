"""detectron2's FCOS as a YAML config builds it, by `MODEL.META_ARCHITECTURE: FCOS`.

detectron2 configures it by Python files alone. What is built here is its own class with the
arguments of those files, so that weights fit both.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch import fcos
from detectron2.structures import Boxes
from torch import Tensor


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with FPN whose P6 and P7 come from P5; RetinaNet's builder takes C5."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@META_ARCH_REGISTRY.register()
class FCOS(fcos.FCOS):
    """detectron2's FCOS, from a config."""

    @configurable
    def __init__(self, **arguments: Any) -> None:
        """Args: as detectron2's."""
        super().__init__(**arguments)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        *others: list[Tensor],
    ) -> dict[str, Tensor]:
        """As detectron2's, whose GIoU loss fails where mixed precision gives it half ones."""
        precise = [level.float() for level in pred_anchor_deltas]
        found: dict[str, Tensor] = super().losses(anchors, pred_logits, gt_labels, precise, *others)
        return found

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments that a config gives."""
        backbone, node = build_backbone(cfg), cfg.MODEL.FCOS
        shapes = backbone.output_shape()
        levels = [shapes[name] for name in node.IN_FEATURES]
        head = fcos.FCOSHead(
            input_shape=levels,
            num_classes=node.NUM_CLASSES,
            conv_dims=[levels[0].channels] * node.NUM_CONVS,
            norm=node.NORM,
            prior_prob=node.PRIOR_PROB,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": node.IN_FEATURES,
            "num_classes": node.NUM_CLASSES,
            "center_sampling_radius": node.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }
