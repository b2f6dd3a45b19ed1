"""detectron2's RegNet from the node MODEL.REGNET."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem


def build_regnet(cfg: CfgNode, _input_shape: ShapeSpec) -> RegNet:
    """Build a RegNetX, or with squeeze and excitation a RegNetY (Radosavovic et al., CVPR 2020).

    Raises:
        ValueError: it has no such map.
    """
    node = cfg.MODEL.REGNET
    net = RegNet(
        stem_class=SimpleStem,
        stem_width=node.STEM_WIDTH,
        block_class=ResBottleneckBlock,
        depth=node.DEPTH,
        w_a=node.W_A,
        w_0=node.W_0,
        w_m=node.W_M,
        group_width=node.GROUP_WIDTH,
        se_ratio=node.SE_RATIO,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm=node.NORM,
    )
    known = list(net._out_feature_strides)
    if not set(node.OUT_FEATURES) <= set(known):
        raise ValueError(f"MODEL.REGNET.OUT_FEATURES: expected some of {', '.join(known)}")
    net._out_features = [name for name in known if name in node.OUT_FEATURES]
    _cut_behind(net, net._out_features[-1])
    return net


def _cut_behind(net: RegNet, last: str) -> None:
    """Drop the stages behind the last map: distributed training waits for their gradients."""
    names = ["stem", *(name for _, name in net.stages_and_names)]
    kept = names.index(last)
    for _, name in net.stages_and_names[kept:]:
        delattr(net, name)
    net.stages_and_names = net.stages_and_names[:kept]
