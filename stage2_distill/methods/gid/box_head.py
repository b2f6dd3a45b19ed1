"""The response of a two-stage detector's box head, on the teacher's proposals.

Beyond the paper, and off by default: GID.BOX_HEAD_CLS_WEIGHT and GID.BOX_HEAD_REG_WEIGHT. The
student's box head looks at the boxes that the teacher's second stage looked at, with the student's
own features, and is pulled towards what the teacher said of them.

Shape letters: N images, K classes, P rows for the teacher's proposals of an image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.nodes import GidConfig
from configs.origins import place_of
from detectors import DenseOutputs, DetectorFamily, Setup
from detectors.families import TwoStageFamily
from detectors.ranks import mean_over_ranks
from stage2_distill.methods.pyramids import not_zero
from stage2_distill.teacher_batch import TeacherBatch

_SIGNALS = ("proposals", "proposal_scores", "proposal_deltas")
_WEIGHTS = ("box_head_cls_weight", "box_head_reg_weight")


def box_head_signals(config: GidConfig) -> tuple[str, ...]:
    """Names of the teacher's signals that these losses read; none where both weights are 0."""
    return _SIGNALS if config.box_head_cls_weight > 0 or config.box_head_reg_weight > 0 else ()


def check_box_head(setup: Setup, config: GidConfig) -> None:
    """Refuse weights of a box head where student or teacher has none.

    Raises:
        ValueError: names the first such key.
    """
    sides = ((setup.cfg, setup.family), (setup.teacher_cfg, setup.teacher_family))
    without = [cfg for cfg, family in sides if not isinstance(family, TwoStageFamily)]
    for name in _WEIGHTS if without else ():
        key, weight = f"GID.{name.upper()}", getattr(config, name)
        if weight > 0:
            raise ValueError(
                f"{place_of(setup.cfg, key)}{key} is {weight}, but a"
                f" {without[0].MODEL.META_ARCHITECTURE} has no box head; set it to 0.0"
            )


def box_head_losses(
    *,
    config: GidConfig,
    family: DetectorFamily,
    detector: nn.Module,
    outputs: DenseOutputs,
    teacher: TeacherBatch,
    over_ranks: bool = False,
) -> dict[str, Tensor]:
    """Compute the unweighted losses of the box head's response.

    Args:
        config: which weights are 0, and beta.
        family: of the student, see `check_box_head`.
        detector: the student.
        outputs: the student's, of the batch.
        teacher: its outputs, with `further` holding the signals of `box_head_signals`.
        over_ranks: divide by the proposals of all ranks; every rank must call this then.

    Returns:
        Scalars `box_cls` and `box_reg`; nothing where both weights are 0.
    """
    if not box_head_signals(config):
        return {}
    assert isinstance(family, TwoStageFamily)
    boxes, scores, targets = (teacher.further[name] for name in _SIGNALS)
    logits, deltas = family.box_head_outputs(detector, outputs, boxes)
    used = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
    count = used.sum().float()
    classification, regression = box_head_response(
        logits,
        deltas,
        scores,
        targets,
        used,
        beta=config.response_reg_beta,
        count=mean_over_ranks(count) if over_ranks else count,
        foreign=teacher.foreign,
    )
    return {"box_cls": classification, "box_reg": regression}


def box_head_response(
    logits: Tensor,
    deltas: Tensor,
    teacher_logits: Tensor,
    teacher_deltas: Tensor,
    used: Tensor,
    *,
    beta: float,
    count: Tensor,
    foreign: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compare what two box heads say of the same boxes, in float32 also under autocast.

    Args:
        logits: (N, P, K + 1), the student's, background last.
        deltas: (N, P, K, 4), the student's.
        teacher_logits: (N, P, K + 1).
        teacher_deltas: (N, P, 4), of the teacher's best class.
        used: (N, P) bool, rows that are proposals.
        beta: of the smooth L1; 0 is L1.
        count: scalar, the number of proposals to divide by.
        foreign: (N, P) bool, rows whose deltas are of a class that the student lacks; they are left
            out.

    Returns:
        Two scalars, zero without proposals: the divergence KL(teacher, student) of the softmaxes
        over K + 1 classes, and smooth L1 summed over the four deltas of the teacher's best class,
        each summed over the proposals and divided by their number.
    """
    best = teacher_logits[..., :-1].argmax(dim=2)
    of_best = torch.take_along_dim(deltas, best[..., None, None], dim=2).squeeze(2)
    with torch.autocast(logits.device.type, enabled=False):
        mine, theirs = (one.float().log_softmax(dim=2) for one in (logits, teacher_logits))
        divergence = F.kl_div(mine, theirs, reduction="none", log_target=True)
        regression = F.smooth_l1_loss(of_best.float(), teacher_deltas, reduction="none", beta=beta)
        if foreign is not None:
            regression = regression.masked_fill(foreign[..., None], 0.0)
        divisor = not_zero(count)
        sums = (one.sum(dim=2).masked_fill(~used, 0.0).sum() for one in (divergence, regression))
        cls, reg = (one / divisor for one in sums)
    return cls, reg
