"""An FCOS of a YAML config as detectron2's own LazyConfig file, which needs nothing of ours."""

from __future__ import annotations

from detectron2.config import CfgNode

from .fcos_model import FCOS, build_fcos_resnet_fpn_backbone

_TEMPLATE = '''\
"""An FCOS student for detectron2 alone; its weights lie beside this file.

    model = instantiate(LazyConfig.load("student_final.py").model)
    DetectionCheckpointer(model).load("student_final.pth")

It was evaluated on {image_format} images with the shorter side at {min_size} pixels and the longer
at most {max_size}.
"""

from detectron2.config import LazyCall as L
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead


def build_resnet():
    cfg = get_cfg()
    cfg.MODEL.RESNETS.update({resnets})
    cfg.MODEL.BACKBONE.FREEZE_AT = {freeze_at}
    return build_resnet_backbone(cfg, ShapeSpec(channels={image_channels}))


model = L(FCOS)(
    backbone=L(FPN)(
        bottom_up=L(build_resnet)(),
        in_features={fpn_in_features},
        out_channels={channels},
        norm={fpn_norm!r},
        top_block=L(LastLevelP6P7)(
            in_channels={channels}, out_channels={channels}, in_feature="p5"
        ),
        fuse_type={fuse_type!r},
    ),
    head=L(FCOSHead)(
        input_shape=[ShapeSpec(channels={channels})] * {num_levels},
        num_classes={head.NUM_CLASSES},
        conv_dims=[{channels}] * {head.NUM_CONVS},
        norm={head.NORM!r},
        prior_prob={head.PRIOR_PROB},
    ),
    head_in_features={in_features},
    num_classes={head.NUM_CLASSES},
    center_sampling_radius={head.CENTER_SAMPLING_RADIUS},
    focal_loss_alpha={head.FOCAL_LOSS_ALPHA},
    focal_loss_gamma={head.FOCAL_LOSS_GAMMA},
    test_score_thresh={head.SCORE_THRESH_TEST},
    test_topk_candidates={head.TOPK_CANDIDATES_TEST},
    test_nms_thresh={head.NMS_THRESH_TEST},
    max_detections_per_image={max_detections},
    pixel_mean={pixel_mean},
    pixel_std={pixel_std},
)
'''


def lazy_config(cfg: CfgNode) -> str:
    """The text of a Python file for `LazyConfig.load`, whose `model` is the config's detector.

    Args:
        cfg: of an FCOS.

    Returns:
        "" for a class or a backbone that detectron2 alone does not have.
    """
    model, head = cfg.MODEL, cfg.MODEL.FCOS
    stock = (FCOS.__name__, build_fcos_resnet_fpn_backbone.__name__)
    if stock != (model.META_ARCHITECTURE, model.BACKBONE.NAME):
        return ""
    return _TEMPLATE.format(
        image_format=cfg.INPUT.FORMAT,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        resnets=dict(model.RESNETS),
        freeze_at=model.BACKBONE.FREEZE_AT,
        image_channels=len(model.PIXEL_MEAN),
        fpn_in_features=list(model.FPN.IN_FEATURES),
        fpn_norm=model.FPN.NORM,
        fuse_type=model.FPN.FUSE_TYPE,
        channels=model.FPN.OUT_CHANNELS,
        head=head,
        in_features=list(head.IN_FEATURES),
        num_levels=len(head.IN_FEATURES),
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        pixel_mean=list(model.PIXEL_MEAN),
        pixel_std=list(model.PIXEL_STD),
    )
