"""What families ask of a backbone, whichever it is: its identity, its padding, its neck."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import nn

from configs.backbones import BACKBONES


def backbone_identity(cfg: CfgNode) -> dict[str, Any]:
    """The keys of MODEL that decide what the backbone computes.

    Of the nodes of `configs.backbones` there is what differs from the defaults, so that a cache is
    the same whether or not its backbone knows of them.
    """
    model = cfg.MODEL
    changed = {
        name: {key: model[name][key] for key, value in keys.items() if model[name][key] != value}
        for name, keys in BACKBONES.items()
    }
    return {
        "BACKBONE": {"NAME": model.BACKBONE.NAME},
        "RESNETS": dict(model.RESNETS),
        "FPN": dict(model.FPN),
        **{name: keys for name, keys in changed.items() if keys},
    }


def padding_of(backbone: Backbone) -> int:
    """To multiples of how many pixels the model pads images for this backbone, at least 1.

    Raises:
        ValueError: it pads to one square, or does not tell detectron2 what to pad to.
    """
    constraints = backbone.padding_constraints
    if constraints.get("square_size"):
        raise ValueError("MODEL.BACKBONE.NAME pads every image to one square, which views do not")
    # SwinTransformer's own property raises AttributeError.
    told = constraints.get("size_divisibility", getattr(backbone, "size_divisibility", None))
    # SimpleFeaturePyramid's key, which nothing reads: images would lose their edges.
    misspelled = constraints.get("size_divisiblity", 0)
    if told is None or (told <= 1 < misspelled):
        needed = misspelled or max(shape.stride for shape in backbone.output_shape().values())
        raise ValueError(
            f"MODEL.BACKBONE.NAME builds a {type(backbone).__name__} that does not tell detectron2 "
            "what to pad images to; give it in a class that derives from it, as the property "
            f"size_divisibility, here {needed}"
        )
    return max(1, told)


def neck_of(backbone: nn.Module) -> nn.ModuleDict:
    """The layers between a network and the pyramid: laterals, outputs and coarse levels of an FPN.

    Args:
        backbone: whose neck shares its tensors with what is returned.

    Returns:
        All parts beside the network that the backbone is built on; none where it is a network.
    """
    parts = dict(backbone.named_children())
    is_built_on_one = any(isinstance(part, Backbone) for part in parts.values())
    beside = {name: part for name, part in parts.items() if not isinstance(part, Backbone)}
    return nn.ModuleDict(beside if is_built_on_one else {})
