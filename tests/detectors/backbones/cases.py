"""Tiny detectors on each of our backbones."""

from __future__ import annotations

from typing import Any

from tests.tiny import DETECTOR

# Network to its node, whose OUT_FEATURES have the strides 8, 16 and 32.
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilenet_v2": (
        "MOBILENET_V2",
        {"OUT_FEATURES": ["c3", "c4", "c5"], "NORM": "BN", "WIDTH": 0.1},
    ),
    "regnet": (
        "REGNET",
        {
            "OUT_FEATURES": ["s2", "s3", "s4"],
            "NORM": "BN",
            "STEM_WIDTH": 8,
            "DEPTH": 4,
            "W_A": 8.0,
            "W_0": 8,
            "W_M": 1.6,
            "GROUP_WIDTH": 8,
            "SE_RATIO": 0.25,
        },
    ),
    "swin": (
        "SWIN",
        {
            "OUT_FEATURES": ["p1", "p2", "p3"],
            "EMBED_DIM": 8,
            "DEPTHS": [1, 1, 2, 1],
            "NUM_HEADS": [1, 1, 2, 2],
            "WINDOW_SIZE": 4,
        },
    ),
}


def model(net: str, kind: str = "retinanet_", **changes: Any) -> dict[str, Any]:
    """The node MODEL of a tiny RetinaNet on a network.

    Args:
        net: of `NETS`.
        kind: of builder.
        changes: of the network's node.
    """
    node, keys = NETS[net]
    return {
        **DETECTOR["MODEL"],
        "BACKBONE": {"NAME": f"build_{kind}{net}_fpn_backbone", "FREEZE_AT": 0},
        "FPN": {"IN_FEATURES": keys["OUT_FEATURES"], "OUT_CHANNELS": 8},
        node: {**keys, **changes},
    }
