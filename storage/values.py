"""Which values of a record make sense: what level "deep" looks at, without PyTorch.

A field says it of itself, in its attribute `limits`: `least` and `most` of its elements, and an
`order`: `ascending`, or `gaps`, whose elements are byte planes, lowest first, of the steps from
each value to the next.

Shape letters: D detections kept of an image, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.schema import DETECTIONS, Field


def wrong_values(
    field: Field, value: NDArray[Any], height: int, width: int, num_classes: int
) -> str:
    """Say what is wrong with one field of a record, or return "".

    Args:
        field: which field.
        value: of the field's shape and dtype.
        height, width: of the view in pixels.
        num_classes: K of the detections.
    """
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        return f"{field.name} holds NaN or infinity"
    if field.name == DETECTIONS:
        return wrong_detections(value, height, width, num_classes)
    limits = field.attributes.get("limits", {})
    if limits.get("order") == "gaps":
        value = np.cumsum(sum(one.astype(np.int64) << 8 * place for place, one in enumerate(value)))
    if "order" in limits and (np.diff(value.astype(np.int64)) <= 0).any():
        return f"{field.name}: its values do not ascend"
    least, most = limits.get("least", -np.inf), limits.get("most", np.inf)
    if (value < least).any() or (value > most).any():
        return f"{field.name} holds a value outside [{least:g}, {most:g}]"
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
