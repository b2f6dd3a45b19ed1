"""Numbers that the ranks of a run share."""

from __future__ import annotations

import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def mean_over_ranks(values: Tensor) -> Tensor:
    """Average over all ranks, on the device and without waiting for it.

    A loss that divides by the mean of a count over the ranks is, once the ranks' losses are
    averaged, the sum over all of them divided by the count over all of them.

    Args:
        values: float, of one shape on every rank; not modified.
    """
    ranks = comm.get_world_size()
    if ranks == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / ranks
