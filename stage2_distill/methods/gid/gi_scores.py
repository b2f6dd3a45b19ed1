"""GI scores: how far teacher and student disagree at each place (equation 1 of the paper).

Nothing here carries a gradient, and everything is computed in float32.

Shape letters: N images, K classes, R anchors of an image; n, r of one part of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stage2_distill.teacher_batch import TeacherBatch

# Class scores compared at once. On a CPU the temporaries (16 MiB each) stay far below the (N, R, K)
# inputs; on a GPU two images of 800x1344 and 80 classes are one part: launches would count.
_CHUNK_ELEMENTS = 1 << 22
_CHUNK_ELEMENTS_ON_GPU = 1 << 25

Part = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class Centres:
    """How central each place is to the box that it gives, as FCOS has it.

    Attributes:
        probabilities: (N, R, 1), the teacher's.
        logits: (N, R, 1), the student's.
    """

    probabilities: Tensor
    logits: Tensor

    @classmethod
    def of(cls, teacher: TeacherBatch, logits: Tensor | None) -> Centres:
        """Take the teacher's from a batch.

        Raises:
            ValueError: a side has none, or another number of places.
        """
        theirs, shape = teacher.further.get("centerness"), (*teacher.valid.shape, 1)
        for side, one in (("teacher", theirs), ("student", logits)):
            if one is None or tuple(one.shape) != shape:
                found = "none" if one is None else tuple(one.shape)
                raise ValueError(f"the {side}'s centerness must be {shape}, got {found}")
        assert theirs is not None and logits is not None
        return cls(probabilities=theirs, logits=logits)

    def at(self, part: Part) -> tuple[Tensor, Tensor]:
        """Centerness (n, r, 1) of teacher and student, 0..1."""
        return self.probabilities[part].float(), torch.sigmoid(self.logits[part].float())


def gi_scores(
    probabilities: Tensor,
    logits: Tensor,
    score: str,
    centres: Centres | None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Compare the class scores of the two sides, a bounded number at a time.

    Args:
        probabilities, logits: (N, R, K), the teacher's and the student's.
        score: `max`, or else by class.
        centres: where they count.

    Returns:
        GI scores (N, R) float32; whether the teacher's best class beats the student's (N, R)
        bool; the student's highest and lowest logits, (N, R) float32 each.
    """
    scores = torch.empty(logits.shape[:2], dtype=torch.float32, device=logits.device)
    highest, lowest = torch.empty_like(scores), torch.empty_like(scores)
    from_teacher = torch.empty_like(scores, dtype=torch.bool)
    for part in _parts(logits):
        centre, own_centre = centres.at(part) if centres else (None, None)
        theirs, mine = _ranked(probabilities[part].float(), centre), logits[part].float()
        _range(mine, lowest[part], highest[part])
        best = _ranked(torch.sigmoid(highest[part])[..., None], own_centre)[..., 0]
        margin = theirs.amax(dim=2) - best
        torch.gt(margin, 0, out=from_teacher[part])
        if score == "max":
            torch.abs(margin, out=scores[part])
        else:
            own = _ranked(torch.sigmoid(mine), own_centre)
            _largest_magnitude(own.sub_(theirs), scores[part])
    return scores, from_teacher, (highest, lowest)


def _ranked(probabilities: Tensor, centre: Tensor | None) -> Tensor:
    """What FCOS ranks its boxes by; without centerness, the probabilities as they are."""
    return probabilities if centre is None else (probabilities * centre).sqrt_()


def _range(values: Tensor, lowest: Tensor, highest: Tensor) -> None:
    """Write the extremes of (n, r, K) over K; a GPU is bound by how often it reads them."""
    if values.is_cuda:
        torch.aminmax(values, dim=2, out=(lowest, highest))
    else:  # where aminmax takes three times as long
        torch.amin(values, dim=2, out=lowest)
        torch.amax(values, dim=2, out=highest)


def _largest_magnitude(values: Tensor, largest: Tensor) -> None:
    """Write the largest magnitude of (n, r, K) over K; the values may be changed."""
    if values.is_cuda:
        low, high = torch.aminmax(values, dim=2)
        torch.maximum(high, low.neg_(), out=largest)
    else:
        torch.amax(values.abs_(), dim=2, out=largest)


def _parts(logits: Tensor) -> Iterator[Part]:
    """Cut (N, R, K) into parts of a bounded number of elements, by images and rows.

    On a CPU never across images: its kernels round the last few values of what they are given in
    another way than the rest, and an image must not depend on its neighbours.
    """
    images, boxes, classes = logits.shape
    on_cpu = logits.device.type == "cpu"
    limit = _CHUNK_ELEMENTS if on_cpu else max(_CHUNK_ELEMENTS_ON_GPU, logits.numel() // 4)
    step = 1 if on_cpu else max(1, images)
    rows = max(1, limit // max(1, step * classes))
    for image in range(0, images, step):
        for start in range(0, boxes, rows):
            yield slice(image, image + step), slice(start, start + rows)
