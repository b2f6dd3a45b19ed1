"""General Instance Selection Module (GISM): which boxes of a batch teacher and student distil.

Source: Dai et al., General Instance Distillation for Object Detection, CVPR 2021, section 3.1
(equations 1 to 3). Nothing here carries a gradient, and everything is computed in float32.

All images of a batch are computed together, with masks in place of lists of different lengths, and
nothing is read back to the host: on a GPU, launches and waiting are what a small step costs.

Shape letters: N images, K classes, R anchors an image, P candidates before NMS, G places for
general instances (GIs) of one image, M ground-truth boxes of the batch. Boxes are XYXY_ABS in
pixels of the view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from configs.nodes import GidConfig
from detectors.detections import clip
from detectors.families import BoxTransform
from stage2_distill.teacher_batch import TeacherBatch

from .gi_scores import Centres, gi_scores
from .nms import keep_first

KINDS = ("pos", "semi_pos", "neg", "other")
_SEMI_POSITIVE_ABOVE = 0.7
_NEGATIVE_BELOW = 0.3


@dataclass(frozen=True, kw_only=True)
class GeneralInstances:
    """The GIs of N images, best first, in G places an image.

    Indexing takes the same of every field: `found[0]` the places of an image, `found[found.valid]`
    the GIs of the batch, one after another.

    Attributes:
        boxes: (N, G, 4) float32, XYXY_ABS, pixels of the view, inside the image.
        scores: (N, G) float32, GI scores, 0..1, descending.
        anchor_index: (N, G) int64, the anchor each GI comes from.
        from_teacher: (N, G) bool, whether the box is the teacher's.
        valid: (N, G) bool, whether there is a GI at this place; what else the fields hold there
            means nothing.
    """

    boxes: Tensor
    scores: Tensor
    anchor_index: Tensor
    from_teacher: Tensor
    valid: Tensor

    def __getitem__(self, chosen: Tensor | int) -> GeneralInstances:
        """The same of every field, by a bool mask, an index tensor or a number."""
        return GeneralInstances(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def of_image(self, number: int) -> GeneralInstances:
        """The GIs of one image alone: fields of shape (G', ...), all of them valid."""
        image = self[number]
        return image[image.valid]


@dataclass(frozen=True, kw_only=True)
class Finite:
    """Whether the outputs that a selection was made of are finite.

    Attributes:
        flags: (T, N) bool, on their device.
        terms: what the T rows are about, the student's before the teacher's.
    """

    flags: Tensor
    terms: tuple[str, ...]

    def failure(self) -> FloatingPointError | None:
        """What to raise where there is NaN or infinity: names the image's place, and the term."""
        for name, images in zip(self.terms, self.flags.tolist(), strict=True):
            if not all(images):
                return FloatingPointError(
                    f"image {images.index(False)} of the batch: the {name} hold NaN or infinity"
                )
        return None


def select(
    teacher: TeacherBatch,
    student_logits: Tensor,
    student_deltas: Tensor,
    *,
    anchors: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    box_transform: BoxTransform,
    config: GidConfig,
    centerness: Tensor | None = None,
) -> GeneralInstances:
    """Find the boxes where teacher and student disagree most: `propose`, checked at once.

    Raises:
        ValueError: the shapes contradict each other.
        FloatingPointError: outputs are not finite; names the image's place in the batch.
    """
    found, finite = propose(
        teacher,
        student_logits,
        student_deltas,
        anchors=anchors,
        image_sizes=image_sizes,
        box_transform=box_transform,
        config=config,
        centerness=centerness,
    )
    failure = finite.failure()
    if failure:
        raise failure
    return found


@torch.no_grad()
def propose(
    teacher: TeacherBatch,
    student_logits: Tensor,
    student_deltas: Tensor,
    *,
    anchors: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    box_transform: BoxTransform,
    config: GidConfig,
    centerness: Tensor | None = None,
) -> tuple[GeneralInstances, Finite]:
    """Find the boxes where teacher and student disagree most, without waiting for the device.

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
        centerness: (N, R, 1) the student's logits, for the score `centered` alone; the teacher's
            probabilities are in its `further`.

    Returns:
        The GIs, `top_k` places an image, not yet filtered by mode; and whether what they were
        computed from is finite, without which they mean nothing.

    Raises:
        ValueError: the shapes contradict each other.
    """
    _check_shapes(teacher, student_logits, student_deltas, anchors, image_sizes)
    centres = Centres.of(teacher, centerness) if config.score == "centered" else None
    scores, from_teacher, extremes = gi_scores(
        teacher.probabilities, student_logits, config.score, centres
    )
    finite = _finite(
        [
            *(("student's class logits", one) for one in extremes),
            ("student's box deltas", student_deltas),
            *([("student's centerness", centres.logits)] if centres else []),
            # The student's side is known to be finite here, so what is left is the teacher's.
            ("teacher's class probabilities" + " or centerness" * bool(centres), scores),
            ("teacher's box deltas", teacher.deltas),
        ]
    )
    scores, order, usable = _best(scores, teacher.valid, config.pre_nms)
    from_teacher = from_teacher.gather(1, order)
    deltas = torch.where(
        from_teacher[..., None], _rows(teacher.deltas, order), _rows(student_deltas, order)
    )
    decoded = box_transform.apply_deltas(
        deltas.flatten(0, 1), anchors.float().index_select(0, order.flatten())
    )
    boxes = clip(decoded.unflatten(0, order.shape), image_sizes)
    usable &= ((boxes[..., 2:] - boxes[..., :2]) > config.min_side).all(dim=2)
    kept, valid = keep_first(boxes, usable, config.nms_iou, config.top_k)
    return (
        GeneralInstances(
            boxes=_rows(boxes, kept),
            scores=scores.gather(1, kept),
            anchor_index=order.gather(1, kept),
            from_teacher=from_teacher.gather(1, kept),
            valid=valid,
        ),
        finite,
    )


def objects_as_instances(boxes: Tensor, valid: Tensor) -> GeneralInstances:
    """The annotated objects in the place of GIs, as if the teacher had found each at once.

    Args:
        boxes: (N, M, 4), zero where there is none.
        valid: (N, M) bool, whether there is one.
    """
    if not valid.shape[1]:  # at least one place, as a selection has
        boxes, valid = boxes.new_zeros(len(boxes), 1, 4), valid.new_zeros(len(valid), 1)
    return GeneralInstances(
        boxes=boxes.float(),
        scores=valid.float(),
        anchor_index=torch.zeros_like(valid, dtype=torch.int64),
        from_teacher=torch.ones_like(valid),
        valid=valid,
    )


@torch.no_grad()
def kinds_of(instances: GeneralInstances, positive: Tensor, gt_boxes: Sequence[Tensor]) -> Tensor:
    """Say how each GI relates to ground truth.

    Positive: the detector assigned its anchor to an object. Semi-positive: it did not, but more
    than 0.7 of the GI lies in one ground-truth box. Negative: less than 0.3 does. Other: the rest.

    Args:
        instances: of N images.
        positive: (N, R) bool, whether the detector assigned the anchor to an object.
        gt_boxes: N times (objects of the image, 4).

    Returns:
        (N, G) int64, indices into KINDS.
    """
    inside = _largest_share_inside(instances.boxes, gt_boxes)
    pos, semi_positive, negative, other = range(len(KINDS))
    kinds = torch.where(inside < _NEGATIVE_BELOW, negative, other)
    kinds = kinds.masked_fill_(inside > _SEMI_POSITIVE_ABOVE, semi_positive)
    return kinds.masked_fill_(positive.gather(1, instances.anchor_index), pos)


def filter_by_mode(instances: GeneralInstances, kinds: Tensor, mode: str) -> GeneralInstances:
    """Keep the GIs of one kind (`pos`, `semi_pos`, `neg`), or all; nothing is refilled.

    Raises:
        ValueError: the mode is not known.
    """
    if mode not in GidConfig.MODES:
        raise ValueError(f"GID.MODE must be one of {', '.join(GidConfig.MODES)}, got {mode!r}")
    if mode == "all":
        return instances
    return replace(instances, valid=instances.valid & (kinds == KINDS.index(mode)))


def count_kinds(kinds: Tensor, valid: Tensor) -> dict[str, int]:
    """Count the GIs of a batch by kind, for the log.

    Args:
        kinds: (N, G) indices into KINDS. valid: (N, G) bool. Both on the host.
    """
    counts = torch.bincount(kinds[valid], minlength=len(KINDS)).tolist()
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


def _finite(terms: Sequence[tuple[str, Tensor]]) -> Finite:
    """Look for NaN and infinity in N images, by the largest magnitude of each term (N, ...)."""
    largest = [
        torch.linalg.vector_norm(term.flatten(1), ord=math.inf, dim=1).float() for _, term in terms
    ]
    return Finite(flags=torch.stack(largest).isfinite(), terms=tuple(name for name, _ in terms))


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


def _largest_share_inside(boxes: Tensor, gt_boxes: Sequence[Tensor]) -> Tensor:
    """Of each box (N, G, 4), the largest share of its area in one object of its image: (N, G)."""
    inside = torch.zeros_like(boxes[..., 0])
    counts = torch.tensor([len(of_image) for of_image in gt_boxes])
    if not counts.sum():
        return inside
    image = torch.repeat_interleave(counts).to(boxes.device, non_blocking=True)  # [M]
    objects, ours = torch.cat(list(gt_boxes))[:, None], boxes.index_select(0, image)  # [M, G, 4]
    low = torch.maximum(objects[..., :2], ours[..., :2])
    sides = torch.minimum(objects[..., 2:], ours[..., 2:]).sub_(low).clamp_(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    share = intersection / (ours[..., 2] - ours[..., 0]).mul_(ours[..., 3] - ours[..., 1])
    share.masked_fill_(intersection == 0, 0.0)
    return inside.scatter_reduce_(0, image[:, None].expand_as(share), share, "amax")
