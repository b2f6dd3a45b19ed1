"""Node MODEL.FCOS: the settings of detectron2's FCOS, which detectron2 itself takes from Python.

Names and meanings are those of the node MODEL.RETINANET; defaults are those of detectron2's
`common/models/fcos.py`. The limits are in `configs.stock_limits`.
"""

from __future__ import annotations

from typing import Any

FCOS_DEFAULTS: dict[str, Any] = {
    # Classes of objects.
    "NUM_CLASSES": 80,
    # Levels of the pyramid that the head reads.
    "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    # Convolutions of each of the two towers of the head.
    "NUM_CONVS": 4,
    # What normalises them.
    "NORM": "GN",
    # Class probability that an untrained head gives.
    "PRIOR_PROB": 0.01,
    # A position learns an object whose centre is less than this away along both axes, in strides.
    "CENTER_SAMPLING_RADIUS": 1.5,
    # Weight of objects beside background in the focal loss; negative: none.
    "FOCAL_LOSS_ALPHA": 0.25,
    # Exponent of the focal loss.
    "FOCAL_LOSS_GAMMA": 2.0,
    # Lowest score of a detection, which is sqrt(class probability * centerness).
    "SCORE_THRESH_TEST": 0.2,
    # Candidates of each level before NMS.
    "TOPK_CANDIDATES_TEST": 1000,
    # IoU above which the lower-scored of two detections is dropped.
    "NMS_THRESH_TEST": 0.6,
}
