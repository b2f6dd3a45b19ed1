"""Each family's rules for one image, in plain loops: which places train, and which a GI assigns.

R places of an image, G boxes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors import DenseOutputs
from tests.stage2_distill import reference

Mask = NDArray[np.bool_]


class AnchorRules:
    """By overlap with the anchors."""

    @staticmethod
    def trained(boxes: np.ndarray, outputs: DenseOutputs) -> Mask:
        """Positive places (R,) for ground-truth boxes (G, 4)."""
        anchors = outputs.anchors.numpy()
        return AnchorRules.assigned(boxes, anchors, np.ones(len(anchors), bool))

    @staticmethod
    def assigned(boxes: np.ndarray, anchors: np.ndarray, usable: Mask) -> Mask:
        """Places (R,) that GI boxes (G, 4) assign."""
        return reference.assign(boxes, anchors, usable, 0.4, 0.5, low_quality=True)


class FcosRules:
    """By where the centre of a position lies, and by the size of the box."""

    @staticmethod
    def trained(boxes: np.ndarray, outputs: DenseOutputs) -> Mask:
        """As `AnchorRules`."""
        positive = np.zeros(len(outputs.anchors), bool)
        last = len(outputs.anchors_per_level) - 1
        level_of = np.repeat(range(last + 1), outputs.anchors_per_level)
        for place, anchor in enumerate(outputs.anchors.tolist()):
            x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
            stride, level = anchor[2] - anchor[0], level_of[place]
            for x1, y1, x2, y2 in boxes.tolist():
                to_sides = (x - x1, y - y1, x2 - x, y2 - y)
                apart = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
                large_enough = level == 0 or max(to_sides) > 4 * stride
                small_enough = level == last or max(to_sides) < 8 * stride
                near = min(to_sides) > 0 and apart < 1.5 * stride
                positive[place] |= near and large_enough and small_enough
        return positive

    @staticmethod
    def assigned(boxes: np.ndarray, anchors: np.ndarray, usable: Mask) -> Mask:
        """Every usable position whose centre lies in a box."""
        found = np.zeros(len(anchors), bool)
        for place, anchor in enumerate(anchors.tolist()):
            x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
            found[place] = any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in boxes.tolist())
        return found & usable


RULES = {"RetinaNet": AnchorRules, "FCOS": FcosRules, "FasterRCNN": AnchorRules}
