"""General Instance Selection Module (GISM): which boxes of a batch teacher and student distil.

Source: Dai et al., General Instance Distillation for Object Detection, CVPR 2021, section 3.1
(equations 1 to 3). Nothing here carries a gradient, and everything is computed in float32.

Shape letters: N images, K classes, R anchors an image, P candidates before NMS, G general
instances (GIs) of one image, M ground-truth boxes of one image. Boxes are XYXY_ABS in pixels of
the view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from detectron2.structures import Boxes, pairwise_ioa
from torch import Tensor
from torchvision.ops import nms

from configs.schema import GidConfig
from stage2_distill.teacher_batch import TeacherBatch

# Class scores compared at once: large enough that launches do not count on a GPU, small enough
# that the temporaries (16 MiB each) stay far below the (N, R, K) inputs.
_CHUNK_ELEMENTS = 1 << 22

KINDS = ("pos", "semi_pos", "neg", "other")
_SEMI_POSITIVE_ABOVE = 0.7
_NEGATIVE_BELOW = 0.3


class BoxTransform(Protocol):
    """What GISM needs of detectron2's Box2BoxTransform or Box2BoxTransformLinear."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Decode (P, 4) deltas at (P, 4) anchors into (P, 4) boxes."""


@dataclass(frozen=True, kw_only=True)
class GeneralInstances:
    """The GIs of one image, best first.

    Attributes:
        boxes: (G, 4) float32, XYXY_ABS, pixels of the view, inside the image.
        scores: (G,) float32, GI scores, 0..1, descending.
        anchor_index: (G,) int64, the anchor each GI comes from.
        from_teacher: (G,) bool, whether the box is the teacher's.
    """

    boxes: Tensor
    scores: Tensor
    anchor_index: Tensor
    from_teacher: Tensor

    @classmethod
    def none(cls, device: torch.device) -> GeneralInstances:
        """Those of an image without any."""
        empty = torch.zeros(0, device=device)
        return cls(
            boxes=empty.new_zeros((0, 4)),
            scores=empty,
            anchor_index=empty.long(),
            from_teacher=empty.bool(),
        )

    def __len__(self) -> int:
        """G."""
        return len(self.scores)

    def __getitem__(self, chosen: Tensor | slice) -> GeneralInstances:
        """The GIs of a bool mask, an index tensor or a slice."""
        return GeneralInstances(
            boxes=self.boxes[chosen],
            scores=self.scores[chosen],
            anchor_index=self.anchor_index[chosen],
            from_teacher=self.from_teacher[chosen],
        )


@torch.no_grad()
def select(
    teacher: TeacherBatch,
    student_logits: Tensor,
    student_deltas: Tensor,
    *,
    anchors: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    box_transform: BoxTransform,
    config: GidConfig,
) -> list[GeneralInstances]:
    """Find the boxes where teacher and student disagree most.

    The best `pre_nms` anchors by score are decoded from the side with the higher best
    probability (the student's when equal), clipped to the image and thinned by class-agnostic
    NMS over all levels. Equal scores are ordered by anchor index, whatever the device's own sort
    does with them.

    Args:
        teacher: the teacher's outputs on the batch's grid.
        student_logits: (N, R, K) float of any precision; not modified.
        student_deltas: (N, R, 4) float of any precision.
        anchors: (R, 4), of the batch's grid.
        image_sizes: (height, width) of each view before padding.
        box_transform: the detector's own.
        config: score, pre_nms, min_side (both sides must exceed it), nms_iou, top_k.

    Returns:
        One GeneralInstances an image, at most `top_k` each, not yet filtered by mode.

    Raises:
        ValueError: the shapes contradict each other.
        FloatingPointError: outputs are not finite; names the image's place in the batch.
    """
    _check_shapes(teacher, student_logits, student_deltas, anchors, image_sizes)
    scores, from_teacher, finite = _gi_scores(teacher.probabilities, student_logits, config.score)
    _check_finite(finite, scores, teacher.deltas, student_deltas)
    scores, order, usable = _best(scores, teacher.valid, config.pre_nms)
    from_teacher = from_teacher.gather(1, order)
    deltas = torch.where(
        from_teacher[..., None], _rows(teacher.deltas, order), _rows(student_deltas, order)
    )
    boxes = box_transform.apply_deltas(deltas.flatten(0, 1), anchors.float()[order].flatten(0, 1))
    boxes = _clip(boxes.unflatten(0, order.shape), image_sizes)
    usable &= ((boxes[..., 2:] - boxes[..., :2]) > config.min_side).all(dim=2)
    selected = []
    for image in range(len(image_sizes)):
        candidates = GeneralInstances(
            boxes=boxes[image],
            scores=scores[image],
            anchor_index=order[image],
            from_teacher=from_teacher[image],
        )[usable[image]]
        # NMS ranks by place, not by score: its own sort need not be stable on every device.
        rank = torch.arange(len(candidates), 0, -1, device=boxes.device, dtype=boxes.dtype)
        selected.append(candidates[nms(candidates.boxes, rank, config.nms_iou)[: config.top_k]])
    return selected


@torch.no_grad()
def kinds_of(
    instances: Sequence[GeneralInstances],
    anchor_labels: Sequence[Tensor] | Tensor,
    gt_boxes: Sequence[Tensor],
    *,
    num_classes: int,
) -> list[Tensor]:
    """Say how each GI relates to ground truth.

    Positive: the detector assigned its anchor to an object. Semi-positive: it did not, but more
    than 0.7 of the GI lies in one ground-truth box. Negative: less than 0.3 does. Other: the rest.

    Args:
        instances: N images.
        anchor_labels: N times (R,) int: the class of the anchor in ground truth; `num_classes`
            for background, -1 for ignored.
        gt_boxes: N times (M, 4).
        num_classes: K.

    Returns:
        N times (G,) int64, indices into KINDS.
    """
    return [
        _kinds_of_image(found, labels, gt, num_classes)
        for found, labels, gt in zip(instances, anchor_labels, gt_boxes, strict=True)
    ]


def filter_by_mode(
    instances: Sequence[GeneralInstances], kinds: Sequence[Tensor], mode: str
) -> list[GeneralInstances]:
    """Keep the GIs of one kind (`pos`, `semi_pos`, `neg`), or all; nothing is refilled.

    Raises:
        ValueError: the mode is not known.
    """
    if mode not in GidConfig.MODES:
        raise ValueError(f"GID.MODE must be one of {', '.join(GidConfig.MODES)}, got {mode!r}")
    if mode == "all":
        return list(instances)
    wanted = KINDS.index(mode)
    return [found[kind == wanted] for found, kind in zip(instances, kinds, strict=True)]


def count_kinds(kinds: Sequence[Tensor]) -> dict[str, int]:
    """Count the GIs of a batch by kind, for the log."""
    counts = torch.bincount(torch.cat(list(kinds)), minlength=len(KINDS)).tolist()
    return dict(zip(KINDS, counts, strict=True))


def _check_shapes(
    teacher: TeacherBatch,
    student_logits: Tensor,
    student_deltas: Tensor,
    anchors: Tensor,
    image_sizes: Sequence[tuple[int, int]],
) -> None:
    images, boxes, classes = teacher.probabilities.shape
    expected = {
        "student_logits": (student_logits, (images, boxes, classes)),
        "student_deltas": (student_deltas, (images, boxes, 4)),
        "teacher.deltas": (teacher.deltas, (images, boxes, 4)),
        "teacher.valid": (teacher.valid, (images, boxes)),
        "anchors": (anchors, (boxes, 4)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must be {shape} beside teacher.probabilities {(images, boxes, classes)}, "
                f"got {tuple(tensor.shape)}"
            )
    if len(image_sizes) != images:
        raise ValueError(f"{images} images need as many image_sizes, got {len(image_sizes)}")


def _gi_scores(probabilities: Tensor, logits: Tensor, score: str) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the class scores of the two sides, a bounded number at a time.

    Returns:
        GI scores (N, R) float32; whether the teacher's best class beats the student's (N, R)
        bool; whether the student's logits are finite (N, R) bool.
    """
    images, boxes, classes = logits.shape
    scores = torch.empty((images, boxes), dtype=torch.float32, device=logits.device)
    from_teacher = torch.empty_like(scores, dtype=torch.bool)
    finite = torch.empty_like(from_teacher)
    rows = max(1, _CHUNK_ELEMENTS // max(1, classes))
    for image in range(images):
        for start in range(0, boxes, rows):
            part = (image, slice(start, start + rows))
            theirs, mine = probabilities[part].float(), logits[part].float()
            highest, lowest = mine.amax(dim=1), mine.amin(dim=1)
            margin = theirs.amax(dim=1) - torch.sigmoid(highest)
            from_teacher[part] = margin > 0
            finite[part] = torch.isfinite(highest) & torch.isfinite(lowest)
            if score == "per_class":
                margin = torch.sigmoid(mine).sub_(theirs).abs_().amax(dim=1)
            scores[part] = margin.abs_()
    return scores, from_teacher, finite


def _check_finite(
    finite_logits: Tensor, scores: Tensor, teacher_deltas: Tensor, student_deltas: Tensor
) -> None:
    """Refuse NaN and infinity, with one transfer to the host for all terms."""
    terms = {
        "student's class logits": finite_logits,
        "student's box deltas": torch.isfinite(student_deltas).flatten(1),
        # The student's side is known to be finite here, so what is left is the teacher's.
        "teacher's class probabilities": torch.isfinite(scores) | ~finite_logits,
        "teacher's box deltas": torch.isfinite(teacher_deltas).flatten(1),
    }
    fine = torch.stack([term.all(dim=1) for term in terms.values()]).tolist()
    for name, images in zip(terms, fine, strict=True):
        if not all(images):
            raise FloatingPointError(
                f"image {images.index(False)} of the batch: the {name} hold NaN or infinity"
            )


def _best(scores: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the best scores of each image; the lower anchor index first where they are equal.

    torch.topk may return equal values in any order, so it gets keys that are never equal: the
    bits of a float >= 0 order as the float does, and the mirrored index breaks ties.

    Returns:
        Scores (N, P), anchor indices (N, P) int64, and whether each is valid (N, P) bool, with
        P = min(count, R).
    """
    boxes = scores.shape[1]
    # (A + 0.0 turns -0.0, whose bits are negative, into 0.0.)
    bits = (scores + 0.0).view(torch.int32).long()
    mirrored = torch.arange(boxes - 1, -1, -1, device=scores.device)
    keys = torch.where(valid, (bits << 32) + mirrored, -1)
    best = keys.topk(min(count, boxes), dim=1).values
    usable = best >= 0
    order = torch.where(usable, boxes - 1 - (best & 0xFFFFFFFF), 0)
    return scores.gather(1, order), order, usable


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows (N, P, 4) float32 of (N, R, 4) at (N, P)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2])).float()


def _clip(boxes: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Clip (N, P, 4) boxes to the N images, not to the padded batch."""
    limits = boxes.new_tensor([(w, h, w, h) for h, w in image_sizes])
    return boxes.clamp(min=0).minimum(limits[:, None])


def _kinds_of_image(
    found: GeneralInstances, labels: Tensor, gt_boxes: Tensor, num_classes: int
) -> Tensor:
    label = labels[found.anchor_index]
    positive = (label >= 0) & (label < num_classes)
    inside = found.scores.new_zeros(len(found))
    if len(gt_boxes):
        inside = pairwise_ioa(Boxes(gt_boxes), Boxes(found.boxes)).amax(dim=0)
    kinds = torch.full_like(found.anchor_index, KINDS.index("other"))
    kinds[inside < _NEGATIVE_BELOW] = KINDS.index("neg")
    kinds[inside > _SEMI_POSITIVE_ABOVE] = KINDS.index("semi_pos")
    kinds[positive] = KINDS.index("pos")
    return kinds
