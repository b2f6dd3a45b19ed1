"""Node MODEL.FCOS: the settings of detectron2's FCOS, which detectron2 itself takes from Python.

Names and meanings are those of the node MODEL.RETINANET; defaults are those of detectron2's
`common/models/fcos.py`. The limits are in `configs.stock_limits`.
"""

from __future__ import annotations

from typing import Any

FCOS_DEFAULTS: dict[str, Any] = {
    "NUM_CLASSES": 80,
    "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    # Convolutions of each of the two towers of the head, and what normalises them.
    "NUM_CONVS": 4,
    "NORM": "GN",
    "PRIOR_PROB": 0.01,
    # A position learns an object whose centre is less than this away along both axes, in strides.
    "CENTER_SAMPLING_RADIUS": 1.5,
    "FOCAL_LOSS_ALPHA": 0.25,
    "FOCAL_LOSS_GAMMA": 2.0,
    # Of sqrt(class probability * centerness).
    "SCORE_THRESH_TEST": 0.2,
    "TOPK_CANDIDATES_TEST": 1000,
    "NMS_THRESH_TEST": 0.6,
}
