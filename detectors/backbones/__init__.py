"""Backbones beside detectron2's ResNet, in its registry: importing this package registers them.

For NET `mobilenet_v2`, `regnet` and `swin` there are `build_NET_fpn_backbone` (P6 pooled from P5,
for R-CNN), `build_retinanet_NET_fpn_backbone` (P6 and P7 from C5) and `build_fcos_NET_fpn_backbone`
(P6 and P7 from P5).
"""

from .mobilenet_v2 import MobileNetV2, build_mobilenet_v2
from .parts import backbone_identity, neck_of, padding_of
from .pyramids import register_with_fpn
from .regnet import build_regnet
from .swin import build_swin

__all__ = [
    "MobileNetV2",
    "backbone_identity",
    "build_mobilenet_v2",
    "build_regnet",
    "build_swin",
    "neck_of",
    "padding_of",
    "register_with_fpn",
]

register_with_fpn("mobilenet_v2", build_mobilenet_v2)
register_with_fpn("regnet", build_regnet)
register_with_fpn("swin", build_swin)
