"""FPN over any backbone, with the coarse levels that each kind of detector wants."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

BuildNet = Callable[[CfgNode, ShapeSpec], Backbone]


def register_with_fpn(name: str, build_net: BuildNet) -> None:
    """Register `build_NAME_fpn_backbone`, and its variants for RetinaNet and FCOS.

    Args:
        name: of the network.
        build_net: builds it from a config and the shape of its input; `MODEL.FPN.IN_FEATURES`
            names all of its outputs, which the pyramid is built on.
    """
    for prefix, top_block in _TOP_BLOCKS.items():
        full_name = f"build_{prefix}{name}_fpn_backbone"
        BACKBONE_REGISTRY._do_register(full_name, _builder(build_net, top_block))


def _builder(
    build_net: BuildNet, top_block: Callable[[CfgNode, Backbone], nn.Module]
) -> Callable[[CfgNode, ShapeSpec], FPN]:
    def build(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
        if input_shape.channels != 3:
            raise ValueError(
                f"MODEL.PIXEL_MEAN has {input_shape.channels} values, and this backbone takes "
                "images of three channels; set INPUT.FORMAT to RGB or BGR"
            )
        net = build_net(cfg, input_shape)
        settings = cfg.MODEL.FPN
        _refuse_others(settings.IN_FEATURES, net)
        return FPN(
            bottom_up=net,
            in_features=settings.IN_FEATURES,
            out_channels=settings.OUT_CHANNELS,
            norm=settings.NORM,
            top_block=top_block(cfg, net),
            fuse_type=settings.FUSE_TYPE,
        )

    return build


def _refuse_others(names: list[str], net: Backbone) -> None:
    """Refuse a pyramid on something else than all maps of a network.

    Raises:
        ValueError: names both.
    """
    known = list(net.output_shape())
    if list(names) != known:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES: expected {', '.join(known)}, the OUT_FEATURES of this "
            "backbone, finest first"
        )


def _pooled(cfg: CfgNode, net: Backbone) -> nn.Module:
    """One more level by subsampling the coarsest of the pyramid."""
    block = LastLevelMaxPool()
    block.in_feature = _coarsest_level(cfg, net)
    return block


def _from_c5(cfg: CfgNode, net: Backbone) -> nn.Module:
    """Two more levels by convolutions of the network's coarsest map, as RetinaNet has them."""
    name = cfg.MODEL.FPN.IN_FEATURES[-1]
    channels = net.output_shape()[name].channels
    return LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature=name)


def _from_p5(cfg: CfgNode, net: Backbone) -> nn.Module:
    """Two more levels by convolutions of the pyramid's coarsest map, as FCOS has them."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return LastLevelP6P7(channels, channels, in_feature=_coarsest_level(cfg, net))


def _coarsest_level(cfg: CfgNode, net: Backbone) -> str:
    """FPN names its levels by the exponent of their stride."""
    stride = net.output_shape()[cfg.MODEL.FPN.IN_FEATURES[-1]].stride
    return f"p{stride.bit_length() - 1}"


_TOP_BLOCKS: dict[str, Callable[[CfgNode, Backbone], nn.Module]] = {
    "": _pooled,
    "retinanet_": _from_c5,
    "fcos_": _from_p5,
}
