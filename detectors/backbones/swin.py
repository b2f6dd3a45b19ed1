"""detectron2's Swin Transformer from the node MODEL.SWIN."""

from __future__ import annotations

from importlib.util import find_spec

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import SwinTransformer


def build_swin(cfg: CfgNode, _input_shape: ShapeSpec) -> SwinTransformer:
    """Build a Swin Transformer (Liu et al., ICCV 2021).

    Raises:
        ValueError: the values do not fit each other, or the package timm is missing.
    """
    node = cfg.MODEL.SWIN
    _refuse_misfits(node)
    frozen = cfg.MODEL.BACKBONE.FREEZE_AT
    outputs = sorted(int(name[1:]) for name in node.OUT_FEATURES)
    # Stages behind the last map are left out: distributed training waits for their gradients.
    stages = outputs[-1] + 1
    return SwinTransformer(
        embed_dim=node.EMBED_DIM,
        depths=tuple(node.DEPTHS)[:stages],
        num_heads=tuple(node.NUM_HEADS)[:stages],
        window_size=node.WINDOW_SIZE,
        drop_path_rate=node.DROP_PATH_RATE,
        out_indices=tuple(outputs),
        # Its 0 and 1 freeze the patch embedding, which is the stem.
        frozen_stages=min(frozen, stages + 1) if frozen else -1,
    )


def _refuse_misfits(node: CfgNode) -> None:
    stages, heads = len(node.DEPTHS), node.NUM_HEADS
    widths = [node.EMBED_DIM << stage for stage in range(stages)]
    if len(heads) != stages or any(w % h for w, h in zip(widths, heads, strict=True)):
        raise ValueError(
            f"MODEL.SWIN.NUM_HEADS: expected one number for each of the {stages} stages of "
            f"MODEL.SWIN.DEPTHS, which divides its channels, {', '.join(map(str, widths))}"
        )
    if max(int(name[1:]) for name in node.OUT_FEATURES) >= stages:
        raise ValueError(f"MODEL.SWIN.OUT_FEATURES: expected some of p0 to p{stages - 1}")
    if node.DROP_PATH_RATE and find_spec("timm") is None:
        raise ValueError(
            "MODEL.SWIN.DROP_PATH_RATE needs the package timm, which is not installed; set it to "
            "0, or install timm"
        )
