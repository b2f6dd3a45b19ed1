"""What the ranks of a run share: numbers, and what one of them computes for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

from configs.wording import one_line

Result = TypeVar("Result")


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


def on_main_rank(compute: Callable[[], Result]) -> Result:
    """Compute on the main rank alone; every rank gets the result. To be called on all of them.

    Raises:
        Exception: as `compute` does, on the main rank.
        ValueError: on the others, in the same words.
    """
    result, failure = None, None
    if comm.is_main_process():
        try:
            result = compute()
        except Exception as error:
            failure = error
    result, message = comm.all_gather((result, failure and one_line(failure)))[0]
    if failure:
        raise failure
    if message is not None:
        raise ValueError(message)
    return result
