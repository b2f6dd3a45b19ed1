"""Which values of a record make sense: what level "deep" looks at, without PyTorch.

Shape letters: D detections kept an image, K classes, R anchors an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.schema import Field, Geometry

# Preset and field to the least and the largest value. No other number is ever encoded.
_LIMITS: Mapping[tuple[str, str], tuple[float, float]] = {
    ("balanced", "features"): (-127, 127),
    ("balanced", "feature_scale"): (0, np.inf),
    ("balanced", "score_value"): (0, 32767),
    ("balanced", "score_bound"): (0, 1),
    ("compact", "feature_scale"): (0, np.inf),
    ("compact", "score_bound"): (0, 1),
    ("compact", "delta_scale"): (0, np.inf),
}


def wrong_values(
    preset: str, field: Field, value: NDArray[Any], geometry: Geometry, height: int, width: int
) -> str:
    """Say what is wrong with one field of a record, or return "".

    Args:
        preset: name of the codec.
        field: which field.
        value: decoded, of the field's shape and dtype.
        geometry: of the record's bucket.
        height, width: of the view in pixels.
    """
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        return f"{field.name} holds NaN or infinity"
    limits = _LIMITS.get((preset, field.name))
    if limits and ((value < limits[0]).any() or (value > limits[1]).any()):
        return f"{field.name} holds a value outside [{limits[0]:g}, {limits[1]:g}]"
    num_scores = geometry.num_boxes * geometry.num_classes
    if (preset, field.name) == ("balanced", "score_index"):
        return _wrong_indices(value.astype(np.int64), num_scores)
    if (preset, field.name) == ("compact", "score_gap"):
        gaps = sum(plane.astype(np.int64) << (8 * place) for place, plane in enumerate(value))
        return _wrong_indices(np.cumsum(gaps), num_scores)
    if field.name == "detections":
        return wrong_detections(value, height, width, geometry.num_classes)
    return ""


def _wrong_indices(index: NDArray[np.int64], num_scores: int) -> str:
    if (np.diff(index) <= 0).any():
        return "the indices of the kept scores do not ascend"
    if index[0] < 0 or index[-1] >= num_scores:
        return f"the index of a kept score is outside [0, {num_scores})"
    return ""


def wrong_detections(
    detections: NDArray[np.float32], height: int, width: int, num_classes: int
) -> str:
    """Say what is wrong with a record's detections, or return "".

    Args:
        detections: (D, 6) x1 y1 x2 y2 score class, pixels of the view, XYXY_ABS.
        height, width: of the view in pixels.
        num_classes: K.
    """
    score = detections[:, 4]
    used = detections[score != -1]
    if (np.diff(score) > 0).any():
        return "detections are not sorted by score"
    if ((used[:, 4] < 0) | (used[:, 4] > 1)).any():
        return "a detection's score is outside [0, 1]"
    x1, y1, x2, y2 = used[:, :4].T
    if (x1 < 0).any() or (y1 < 0).any() or (x2 > width).any() or (y2 > height).any():
        return f"a detection lies outside the view of {width} x {height}"
    if (x1 > x2).any() or (y1 > y2).any():
        return "a detection has a negative size"
    label = used[:, 5]
    if ((label < 0) | (label >= num_classes) | (label != np.floor(label))).any():
        return f"a detection's class is not one of {num_classes}"
    return ""
