"""What a two-stage detector says of a batch: a dense head's outputs, and those of its box head.

Shape letters: N images, K classes, P rows for proposals, Q proposals of one image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from detectron2.structures import Instances
from torch import Tensor

from .outputs import DenseOutputs

# P: proposals of an image in a record, the best ones.
NUM_PROPOSALS = 256


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """What inference makes of the proposals, in float32.

    Attributes:
        proposals: N times Q proposals, best first, as the RPN leaves them after NMS.
        logits: (sum of Q, K + 1), those of the background last.
        deltas: (sum of Q, K * 4), or (sum of Q, 4) for all classes alike.
    """

    proposals: list[Instances]
    logits: Tensor
    deltas: Tensor

    def signals(self) -> dict[str, Tensor]:
        """The best P of every image, in rows; those that are not used hold zeros."""
        boxes = torch.cat([one.proposal_boxes.tensor for one in self.proposals])
        best, deltas = self.logits[:, :-1].argmax(dim=1), by_class(self.deltas, self.logits)
        values = {
            "proposals": boxes,
            "proposal_scores": self.logits,
            "proposal_deltas": torch.take_along_dim(deltas, best[:, None, None], dim=1)[:, 0],
        }
        return {name: self._in_rows(one) for name, one in values.items()}

    def _in_rows(self, values: Tensor) -> Tensor:
        """Of (sum of Q, D), the first of every image: (N, P, D)."""
        found = values.new_zeros((len(self.proposals), NUM_PROPOSALS, values.shape[1]))
        parts = values.split([len(one) for one in self.proposals])
        for row, part in zip(found, parts, strict=True):
            row[: len(part)] = part[:NUM_PROPOSALS]
        return found


@dataclass(frozen=True, kw_only=True)
class RcnnOutputs(DenseOutputs):
    """The RPN's outputs as a dense head's, with what the second stage needs or gave.

    Attributes:
        pyramid: every level by name; `on_levels` leaves it whole, for the box head has levels of
            its own.
        second: None in training, where the proposals are others.
    """

    pyramid: dict[str, Tensor]
    second: SecondStage | None

    def signals(self) -> dict[str, Tensor]:
        """See `DenseOutputs`; in training, those of the RPN alone."""
        return super().signals() | (self.second.signals() if self.second else {})

    def first(self, count: int) -> Self:
        """See `DenseOutputs`; in training."""
        assert self.second is None, "proposals are of all images together"
        pyramid = {name: one[:count] for name, one in self.pyramid.items()}
        return replace(super().first(count), pyramid=pyramid)


def by_class(deltas: Tensor, logits: Tensor) -> Tensor:
    """View (Q, K * 4) or, of all classes alike, (Q, 4) deltas as (Q, K, 4), beside their logits."""
    return deltas.unflatten(1, (-1, 4)).expand(-1, logits.shape[1] - 1, -1)
