"""Data ahead of the step: how many batches the workers hold ready, and the copy to the device.

Both are bounded. A record takes from a few megabytes to ninety, so the workers' lead is counted in
bytes; on the device lies the batch that is computed and the one after it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detectors.pinned import naming_pinning

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]

# Batches a worker runs ahead at most; more than a few smooth nothing any more.
_MAX_FACTOR = 4


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How far the workers of one rank run ahead.

    Attributes:
        workers: processes that read.
        factor: batches each of them holds ready or reads.
    """

    workers: int
    factor: int


def plan_lead(
    *, workers: int, batch_bytes: int, limit_bytes: int, page_locked: bool = False
) -> Lead:
    """Bound what the workers hold ready, in bytes; one batch is always allowed.

    Args:
        workers: DATALOADER.NUM_WORKERS.
        batch_bytes: the largest batch of this rank, as it lies in memory.
        limit_bytes: CACHE.PREFETCH_BYTES.
        page_locked: whether it is page-locked memory; for the log.

    Returns:
        No more workers than asked for, fewer where one batch for each would be too much.
    """
    if workers == 0:
        return Lead(workers=0, factor=0)
    batches = max(1, limit_bytes // max(1, batch_bytes))
    used = min(workers, batches)
    lead = Lead(workers=used, factor=min(_MAX_FACTOR, batches // used))
    if used < workers:
        logger.warning(
            "DATALOADER.NUM_WORKERS %d is lowered to %d: CACHE.PREFETCH_BYTES %d holds no more "
            "than %d batches of up to %d bytes", workers, used, limit_bytes, batches, batch_bytes,
        )  # fmt: skip
    logger.info(
        "%d workers hold up to %d batches ready, %.1f MB at most%s",
        used, used * lead.factor, used * lead.factor * batch_bytes / 1e6,
        ", page-locked: each tensor takes a power of two" if page_locked else "",
    )  # fmt: skip
    return lead


class DeviceLoader:
    """Gives the batches of a loader on the device, the next one copied while this one computes.

    On a GPU the copy runs on a stream of its own, from the pinned memory that the loader hands out.
    On a CPU there is nothing to copy; the loader's workers read ahead.
    """

    def __init__(self, loader: Iterable[Batch], device: torch.device) -> None:
        """Args:

        loader: batches on the host.
        device: where the step computes.
        """
        self._loader = loader
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        """The loader's batches, in order; its workers start now, not with the first of them."""
        batches = iter(self._loader)
        return batches if self._device.type != "cuda" else self._copied_ahead(batches)

    def _copied_ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        stream = torch.cuda.Stream(self._device)
        ready: Batch | None = None
        remedy = "lower CACHE.PREFETCH_BYTES or DATALOADER.NUM_WORKERS"
        for batch in naming_pinning(batches, remedy):
            with torch.cuda.stream(stream):
                following = [{k: to_device(v, self._device) for k, v in x.items()} for x in batch]
            if ready is not None:
                yield ready
            # The copy began before the last step and is over by now, or the step waits for it.
            torch.cuda.current_stream(self._device).wait_stream(stream)
            _keep_for_step(following)
            ready = following
        if ready is not None:
            yield ready


def to_device(value: Any, device: torch.device) -> Any:
    """Copy a tensor, a dict of tensors or ground truth; text and numbers stay as they are."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Boxes):
        return Boxes(to_device(value.tensor, device))
    if isinstance(value, Instances):
        return Instances(value.image_size, **to_device(value.get_fields(), device))
    if isinstance(value, dict):
        return {key: to_device(one, device) for key, one in value.items()}
    return value


def _keep_for_step(batch: Batch) -> None:
    """Tell the allocator that the step's stream uses memory of the copying stream."""
    for tensor in (one for item in batch for value in item.values() for one in _tensors(value)):
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors that `to_device` copies."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Boxes):
        yield value.tensor
    elif isinstance(value, dict | Instances):
        fields = value if isinstance(value, dict) else value.get_fields()
        for one in fields.values():
            yield from _tensors(one)
