"""Nodes of MODEL for the backbones that detectron2 has no keys for: their defaults.

Their limits are in `configs.stock_limits`, what is built of them in `detectors.backbones`. All
backbones share `MODEL.BACKBONE.FREEZE_AT` (0: nothing, 1: the stem, 2: and the first stage, ...).
"""

from typing import Any

BACKBONES: dict[str, dict[str, Any]] = {
    "MOBILENET_V2": {
        # Of the maps c2, c3, c4, c5, of strides 4, 8, 16, 32.
        "OUT_FEATURES": ["c3", "c4", "c5"],
        # What normalises the convolutions.
        "NORM": "FrozenBN",
        # Factor of all numbers of channels, which are rounded to multiples of 8.
        "WIDTH": 1.0,
    },
    # RegNetX-4GF.
    "REGNET": {
        # Of the maps stem, s1, s2, s3, s4, of strides 2, 4, 8, 16, 32.
        "OUT_FEATURES": ["s2", "s3", "s4"],
        # What normalises the convolutions.
        "NORM": "FrozenBN",
        # Channels of the stem.
        "STEM_WIDTH": 32,
        # Number of blocks.
        "DEPTH": 23,
        # Widths of the blocks: their slope.
        "W_A": 38.65,
        # Widths of the blocks: the first one.
        "W_0": 96,
        # Widths of the blocks: the factor between two stages.
        "W_M": 2.43,
        # Channels of one group of a convolution.
        "GROUP_WIDTH": 40,
        # Share of the channels in squeeze and excitation: 0 is RegNetX, 0.25 RegNetY.
        "SE_RATIO": 0.0,
    },
    # Swin-T.
    "SWIN": {
        # Of the maps p0, p1, p2, p3, of strides 4, 8, 16, 32.
        "OUT_FEATURES": ["p1", "p2", "p3"],
        # Channels of p0; every stage has twice as many as the one before.
        "EMBED_DIM": 96,
        # Blocks of each stage.
        "DEPTHS": [2, 2, 6, 2],
        # Attention heads of each stage.
        "NUM_HEADS": [3, 6, 12, 24],
        # Positions along one side of a window.
        "WINDOW_SIZE": 7,
        # Probability that a block of the last stage is left out in training; needs timm.
        "DROP_PATH_RATE": 0.0,
    },
}
