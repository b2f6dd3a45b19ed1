"""The distillation losses at general instances: feature, relation and response.

Source: Dai et al., General Instance Distillation for Object Detection, CVPR 2021, section 3.2
(equations 4 to 9); docs/ALGORITHM.md, section 5, lists what differs from it. Computed in float32
also under autocast. Every term stays connected to the student's graph when there is nothing to
compare, so that no parameter is left without a gradient.

Shape letters: N images, K classes, R anchors an image, C channels, G general instances (GIs) of
the whole batch, r the side of a pooled GI in cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.nodes import GidConfig
from detectors.ranks import mean_over_ranks
from stage2_distill.methods.adaptation import Adaptation
from stage2_distill.methods.pyramids import not_zero, precise
from stage2_distill.teacher_batch import TeacherBatch

from .box_head import box_head_signals
from .pooling import GiPooler, Rois

# Two GIs at one place have distance 0, where the square root has no derivative.
_SQUARED_DISTANCE_FLOOR = 1e-12


def needed_signals(config: GidConfig) -> tuple[str, ...]:
    """Names of the teacher's signals that selection and the losses with a weight need."""
    with_features = config.feature_weight > 0 or config.relation_weight > 0
    names = ["features"] if with_features else []
    centerness = ["centerness"] if config.score == "centered" else []
    return (*names, "scores", "deltas", *centerness, *box_head_signals(config))


def as_they_are(deltas: Tensor) -> Tensor:
    """Deltas that can be compared without more ado."""
    return deltas


def gid_losses(
    *,
    config: GidConfig,
    teacher: TeacherBatch,
    rois: Rois,
    assigned: Tensor,
    student_features: Sequence[Tensor],
    student_logits: Tensor,
    student_deltas: Tensor,
    adaptation: Adaptation,
    pooler: GiPooler,
    comparable: Callable[[Tensor], Tensor] = as_they_are,
    over_ranks: bool = False,
) -> dict[str, Tensor]:
    """Compute the unweighted distillation losses of a batch.

    Args:
        config: relation scope and beta, and which weights are 0.
        teacher: the teacher's outputs on the batch's grid.
        rois: the GIs of the N images, from the pooler.
        assigned: (A,) int64, ascending: places in N * R of the response loss, which the family's
            `assign_boxes` finds.
        student_features: L tensors (N, C, H_l, W_l), before the adaptation.
        student_logits: (N, R, K), before the sigmoid.
        student_deltas: (N, R, 4).
        adaptation: trained with the student.
        pooler: for the strides of the pyramid.
        comparable: brings deltas (A, 4) to what is compared of them, see `DetectorFamily`.
        over_ranks: divide by counts over all ranks. Every rank must call this then, and the mean
            over the ranks is the loss of all images (for the relation loss: with the scope
            `image`).

    Returns:
        Scalars `feature` and `relation`, unless both weights are 0, and `response_cls` and
        `response_reg`.
    """
    num_instances, num_assigned = _counts(rois, assigned, over_ranks)
    classification, regression = response_loss(
        student_logits,
        student_deltas,
        teacher,
        assigned,
        beta=config.response_reg_beta,
        comparable=comparable,
        count=num_assigned,
    )
    terms = {"response_cls": classification, "response_reg": regression}
    if "features" in needed_signals(config):
        with torch.no_grad():
            teacher_rois = pooler(teacher.features, rois)
        adapted = adaptation(student_features, pooler.cells(student_features, rois))
        student_rois = pooler(adapted, rois)
        groups = rois.counts if config.relation_scope == "image" else [len(rois)]
        feature = feature_loss(student_rois, teacher_rois, count=num_instances)
        relation = relation_loss(student_rois, teacher_rois, groups)
        terms = {"feature": feature, "relation": relation, **terms}
    return terms


def feature_loss(
    student_rois: Tensor, teacher_rois: Tensor, *, count: Tensor | None = None
) -> Tensor:
    """Squared difference summed over channels, averaged over GIs and cells (equation 5).

    Args:
        student_rois: (G, C, r, r), adapted to the teacher's channels.
        teacher_rois: (G, C, r, r).
        count: scalar to divide by in place of G.

    Returns:
        Scalar; zero without GIs.
    """
    student, teacher = precise(student_rois), precise(teacher_rois)
    _check_same(student, teacher)
    cells = student.shape[2] * student.shape[3]
    total = F.mse_loss(student, teacher, reduction="sum")
    return total / (_divisor(len(student), count) * cells)


def relation_loss(student_rois: Tensor, teacher_rois: Tensor, groups: Sequence[int]) -> Tensor:
    """Compare the normalised distances between GIs (equations 6 and 7).

    Distances are divided by their mean over i != j; smooth L1 (beta 1), mean over i != j.

    Args:
        student_rois: (G, C, r, r), adapted.
        teacher_rois: (G, C, r, r).
        groups: sizes of the consecutive groups of GIs whose pairs are compared, summing to G: one
            for the batch, or one for each image.

    Returns:
        Scalar, averaged over the groups (also those that give zero, so that the value does not
        depend on how images are spread over processes); zero for a group with fewer than three
        GIs: with two, the only distance is its own mean.

    Raises:
        ValueError: the groups do not sum to G.
    """
    student, teacher = precise(student_rois).flatten(1), precise(teacher_rois).flatten(1)
    _check_same(student, teacher)
    if sum(groups) != len(student):
        raise ValueError(f"groups {list(groups)} do not sum to the {len(student)} GIs")
    total = student.sum() * 0.0
    parts = zip(student.split(list(groups)), teacher.split(list(groups)), strict=True)
    for mine, theirs in parts:
        if len(mine) > 2:
            total = total + _relation_of_group(mine, theirs)
    return total / max(1, len(groups))


def response_loss(
    student_logits: Tensor,
    student_deltas: Tensor,
    teacher: TeacherBatch,
    assigned: Tensor,
    *,
    beta: float,
    comparable: Callable[[Tensor], Tensor] = as_they_are,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Pull the student's head towards the teacher's at the assigned anchors (equations 8 and 9).

    Args:
        student_logits: (N, R, K), before the sigmoid.
        student_deltas: (N, R, 4).
        teacher: probabilities and deltas.
        assigned: (A,) int64, places in N * R.
        beta: of the smooth L1 of the deltas; 0 is L1.
        comparable: see `gid_losses`.
        count: scalar to divide by in place of the number of assigned anchors.

    Returns:
        Two scalars: BCE summed over classes and smooth L1 summed over the four deltas, each over
        the number of assigned anchors; zero without any.
    """
    logits = precise(_pick(student_logits, assigned))
    deltas = comparable(precise(_pick(student_deltas, assigned)))
    probabilities = _pick(teacher.probabilities, assigned).to(logits.dtype)
    targets = comparable(_pick(teacher.deltas, assigned).to(deltas.dtype))
    divisor = _divisor(len(assigned), count)
    with torch.autocast(logits.device.type, enabled=False):
        classification = F.binary_cross_entropy_with_logits(logits, probabilities, reduction="sum")
        regression = F.smooth_l1_loss(deltas, targets, reduction="sum", beta=beta)
    return classification / divisor, regression / divisor


def _counts(
    rois: Rois, assigned: Tensor, over_ranks: bool
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Numbers of GIs and of assigned anchors to divide by; None: the rank's own."""
    if not over_ranks:
        return None, None
    own = torch.tensor([len(rois), len(assigned)], dtype=torch.float32)
    instances, anchors = mean_over_ranks(own.to(assigned.device, non_blocking=True)).unbind()
    return instances, anchors


def _divisor(own: int, count: Tensor | None) -> Tensor | float:
    """The count, or a number of this rank in its place, but never zero."""
    return max(1, own) if count is None else not_zero(count)


def _relation_of_group(student: Tensor, teacher: Tensor) -> Tensor:
    """One group of G >= 3 GIs, features (G, D)."""
    pairs = len(student) * (len(student) - 1)
    mine = _distances(student)
    with torch.no_grad():
        theirs = _distances(teacher)
        theirs = theirs / (theirs.sum() / pairs)
    mine = mine / (mine.sum() / pairs)
    return F.smooth_l1_loss(mine, theirs, reduction="sum") / pairs


def _distances(features: Tensor) -> Tensor:
    """Euclidean distances (G, G) of the rows of (G, D), zero on the diagonal.

    By |a|^2 + |b|^2 - 2ab: the direct form needs (G, G, D) of memory for its gradient. Distances
    do not change when all rows move together, so the mean is taken off first, which keeps digits
    that the subtraction would cancel.
    """
    with torch.autocast(features.device.type, enabled=False):
        centred = features - features.detach().mean(dim=0)
        squares = centred.square().sum(dim=1)
        squared = squares[:, None] + squares - 2.0 * centred @ centred.T
        distances = squared.clamp(min=_SQUARED_DISTANCE_FLOOR).sqrt()
    return distances.masked_fill(
        torch.eye(len(features), dtype=torch.bool, device=squared.device), 0.0
    )


def _pick(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of (N, R, D) at flat anchor places."""
    return values.flatten(0, 1).index_select(0, rows)


def _check_same(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's pooled features {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)} must have one shape"
        )
