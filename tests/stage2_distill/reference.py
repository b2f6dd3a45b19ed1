"""GISM and the GID losses once more, written from the equations: slow, in float64, with loops.

Nothing is shared with the package: neither code nor torch. Where a decision hangs on less than
float32 can tell (two scores, an overlap at the NMS threshold, a side at the limit), the reference
says so, and a test drops that case instead of guessing.

Boxes are XYXY_ABS in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

Array = np.ndarray
Box = tuple[float, float, float, float]

SCALE_CLAMP = math.log(1000.0 / 16)


@dataclass
class Selection:
    """The GIs of one image, best first, and whether rounding could change them."""

    anchors: list[int] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    from_teacher: list[bool] = field(default_factory=list)
    ambiguous: bool = False


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))


def score_of(teacher: Array, student: Array, kind: str) -> float:
    """The GI score of one anchor from its K probabilities on each side."""
    if kind == "max":
        return abs(max(teacher) - max(student))
    best = 0.0
    for t, s in zip(teacher, student, strict=True):
        best = max(best, abs(t - s))
    return best


def decode(delta: Array, anchor: Array) -> Box:
    """R-CNN box deltas (dx, dy, dw, dh) with weights 1."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = anchor[0] + 0.5 * width + delta[0] * width
    y = anchor[1] + 0.5 * height + delta[1] * height
    w = width * math.exp(min(delta[2], SCALE_CLAMP))
    h = height * math.exp(min(delta[3], SCALE_CLAMP))
    return (x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h)


def clip(box: Box, height: float, width: float) -> Box:
    """Move corners into the image."""
    x1, y1, x2, y2 = box
    return (
        min(max(x1, 0.0), width),
        min(max(y1, 0.0), height),
        min(max(x2, 0.0), width),
        min(max(y2, 0.0), height),
    )


def area(box: Box) -> float:
    """Of one box, square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a: Box, b: Box) -> float:
    """Of two boxes, square pixels."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    return w * h if w > 0 and h > 0 else 0.0


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 for boxes that do not meet."""
    inter = intersection(a, b)
    return inter / (area(a) + area(b) - inter) if inter > 0 else 0.0


def select(
    probabilities: Array,
    teacher_deltas: Array,
    valid: Array,
    logits: Array,
    student_deltas: Array,
    anchors: Array,
    image_size: tuple[int, int],
    *,
    score: str = "per_class",
    pre_nms: int = 3000,
    min_side: float = 10.0,
    nms_iou: float = 0.3,
    top_k: int = 10,
    centres: tuple[Array, Array] | None = None,
) -> Selection:
    """GISM for one image: (R, K), (R, 4), (R,), (R, K), (R, 4), (R, 4).

    `centres`: for `centered`, the teacher's centerness and the student's logits of it, (R, 1) each.
    """
    result = Selection()
    scores: dict[int, float] = {}
    teacher_wins: dict[int, bool] = {}
    for r in range(len(anchors)):
        if not valid[r]:
            continue
        student = [sigmoid(float(x)) for x in logits[r]]
        teacher = [float(x) for x in probabilities[r]]
        if centres is not None:
            centre, own_centre = float(centres[0][r, 0]), sigmoid(float(centres[1][r, 0]))
            teacher = [math.sqrt(p * centre) for p in teacher]
            student = [math.sqrt(p * own_centre) for p in student]
        scores[r] = score_of(np.array(teacher), np.array(student), score)
        margin = max(teacher) - max(student)
        teacher_wins[r] = margin > 0
        # Both below the smallest probability that float32 tells from zero: the same side wins.
        result.ambiguous |= 1e-30 < abs(margin) < 1e-6
    order = sorted(scores, key=lambda r: (-scores[r], r))
    result.ambiguous |= any(1e-30 < scores[a] - scores[b] < 1e-6 for a, b in pairwise(order))
    for r in order[:pre_nms]:
        delta = teacher_deltas[r] if teacher_wins[r] else student_deltas[r]
        box = clip(decode(delta, anchors[r]), *image_size)
        w, h = box[2] - box[0], box[3] - box[1]
        result.ambiguous |= min(abs(w - min_side), abs(h - min_side)) < 1e-3
        if not (w > min_side and h > min_side):
            continue
        overlaps = [iou(box, kept) for kept in result.boxes]
        result.ambiguous |= any(abs(o - nms_iou) < 1e-4 for o in overlaps)
        if any(o > nms_iou for o in overlaps):
            continue
        result.anchors.append(r)
        result.boxes.append(box)
        result.scores.append(scores[r])
        result.from_teacher.append(teacher_wins[r])
        if len(result.boxes) == top_k:
            break
    return result


def kinds(selection: Selection, positive: Array, gt_boxes: Array) -> list[str]:
    """Positive, semi-positive, negative or other, for each GI; marks close calls as ambiguous."""
    found = []
    for r, box in zip(selection.anchors, selection.boxes, strict=True):
        inside = 0.0
        for gt in gt_boxes:
            inside = max(inside, intersection(box, tuple(gt)) / area(box))
        selection.ambiguous |= min(abs(inside - 0.7), abs(inside - 0.3)) < 1e-4
        if positive[r]:
            found.append("pos")
        elif inside > 0.7:
            found.append("semi_pos")
        elif inside < 0.3:
            found.append("neg")
        else:
            found.append("other")
    return found


def assign(
    boxes: Array, anchors: Array, valid: Array, low: float, high: float, low_quality: bool
) -> Array:
    """Which anchors (R,) the matching rule gives to the boxes (G, 4).

    An anchor is assigned when its best IoU reaches `high`, or, with `low_quality`, when no usable
    anchor meets one of the boxes better. `low` does not matter: between the two, and below, an
    anchor is equally not assigned. Computed in float32, operation by operation, since here a tie
    between two anchors is common and decides.
    """
    assert low <= high
    table = overlaps_float32(boxes, anchors)
    usable = [r for r in range(len(anchors)) if valid[r]]
    assigned = np.zeros(len(anchors), dtype=bool)
    for r in usable:
        assigned[r] = any(overlap >= np.float32(high) for overlap in table[:, r])
    if low_quality:
        for overlap in table:
            best = max((overlap[r] for r in usable), default=np.float32(0))
            for r in usable:
                if best > 0 and overlap[r] == best:
                    assigned[r] = True
    return assigned


def overlaps_float32(boxes: Array, anchors: Array) -> Array:
    """IoU (G, R) in float32, in the order of operations that everybody uses."""
    b, a = boxes.astype(np.float32), anchors.astype(np.float32)
    table = np.zeros((len(b), len(a)), dtype=np.float32)
    for g, (x1, y1, x2, y2) in enumerate(b):
        w = np.maximum(np.minimum(x2, a[:, 2]) - np.maximum(x1, a[:, 0]), 0)
        h = np.maximum(np.minimum(y2, a[:, 3]) - np.maximum(y1, a[:, 1]), 0)
        areas = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
        table[g] = w * h / ((x2 - x1) * (y2 - y1) + areas - w * h)
    return table


def level_of(box: Box, min_level: int, max_level: int) -> tuple[int, bool]:
    """Pyramid level (log2 of the stride) of a box, and whether rounding could change it."""
    exact = 4 + math.log2(math.sqrt(area(box)) / 224.0)
    level = min(max(math.floor(exact), min_level), max_level)
    return level, abs(exact - round(exact)) < 1e-4 and min_level < round(exact) <= max_level


def interpolate(feature: Array, y: float, x: float) -> Array:
    """Bilinear value (C,) of (C, H, W) at a place where whole numbers are cell centres."""
    height, width = feature.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(feature.shape[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    y0, x0 = math.floor(y), math.floor(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = y - y0, x - x0
    top = feature[:, y0, x0] * (1 - fx) + feature[:, y0, x1] * fx
    bottom = feature[:, y1, x0] * (1 - fx) + feature[:, y1, x1] * fx
    return top * (1 - fy) + bottom * fy


def roi_align(feature: Array, box: Box, stride: int, size: int, ratio: int) -> Array:
    """ROIAlign V2 of one box: (C, H, W) to (C, size, size)."""
    x1, y1, x2, y2 = (side / stride - 0.5 for side in box)
    bin_w, bin_h = (x2 - x1) / size, (y2 - y1) / size
    result = np.zeros((feature.shape[0], size, size))
    for i in range(size):
        for j in range(size):
            for a in range(ratio):
                for b in range(ratio):
                    y = y1 + (i + (a + 0.5) / ratio) * bin_h
                    x = x1 + (j + (b + 0.5) / ratio) * bin_w
                    result[:, i, j] += interpolate(feature, y, x) / ratio**2
    return result


def pool(
    pyramid: list[Array], strides: list[int], box: Box, size: int, ratio: int
) -> tuple[Array, bool]:
    """One box from its level of L maps (C, H_l, W_l), and whether the level is ambiguous."""
    powers = [int(math.log2(s)) for s in strides]
    level, ambiguous = level_of(box, powers[0], powers[-1])
    index = level - powers[0]
    return roi_align(pyramid[index], box, strides[index], size, ratio), ambiguous


def convolve(feature: Array, weight: Array, bias: Array) -> Array:
    """Convolution (c, H, W) to (d, H, W) with zeros around, weight (d, c, k, k), bias (d,)."""
    side = weight.shape[2]
    pad = side // 2
    padded = np.pad(feature, ((0, 0), (pad, pad), (pad, pad)))
    result = np.zeros((weight.shape[0], *feature.shape[1:]))
    for y in range(feature.shape[1]):
        for x in range(feature.shape[2]):
            patch = padded[:, y : y + side, x : x + side]
            for d in range(weight.shape[0]):
                result[d, y, x] = (weight[d] * patch).sum() + bias[d]
    return result


def feature_loss(student: Array, teacher: Array) -> float:
    """(G, C, r, r) each."""
    gis, _, height, width = student.shape
    total = 0.0
    for g in range(gis):
        for y in range(height):
            for x in range(width):
                total += float(((student[g, :, y, x] - teacher[g, :, y, x]) ** 2).sum())
    return total / (gis * height * width) if gis else 0.0


def smooth_l1(difference: float, beta: float) -> float:
    """Huber as detectron2 scales it; plain L1 for beta 0."""
    size = abs(difference)
    return 0.5 * size * size / beta if size < beta else size - 0.5 * beta


def relation_loss(student: Array, teacher: Array) -> float:
    """(G, D) each, one group."""
    n = len(student)
    if n < 3:
        return 0.0
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    sides = []
    for rows in (student, teacher):
        floor = 1e-6
        distances = [max(float(np.linalg.norm(rows[i] - rows[j])), floor) for i, j in pairs]
        mean = sum(distances) / len(pairs)
        sides.append([d / mean for d in distances])
    return sum(smooth_l1(s - t, 1.0) for s, t in zip(*sides, strict=True)) / len(pairs)


def response_losses(
    logits: Array,
    student_deltas: Array,
    probabilities: Array,
    teacher_deltas: Array,
    assigned: Array,
    beta: float,
) -> tuple[float, float]:
    """(N, R, K), (N, R, 4), (N, R, K), (N, R, 4), (N, R)."""
    classification = regression = 0.0
    count = 0
    for n in range(assigned.shape[0]):
        for r in range(assigned.shape[1]):
            if not assigned[n, r]:
                continue
            count += 1
            for x, p in zip(logits[n, r], probabilities[n, r], strict=True):
                classification += max(x, 0.0) - x * p + math.log1p(math.exp(-abs(x)))
            for s, t in zip(student_deltas[n, r], teacher_deltas[n, r], strict=True):
                regression += smooth_l1(s - t, beta)
    return classification / max(1, count), regression / max(1, count)
