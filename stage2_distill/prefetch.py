"""Data ahead of the step: how many batches the workers hold ready, and the copy to the device.

Both are bounded. A record takes from a few megabytes to ninety, so the workers' lead is counted in
bytes; on the device lies the batch that is computed and the one after it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from detectors.pinned import naming_pinning

from .packing import Batch, PackedBatch, pack

logger = logging.getLogger(__name__)

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
        ", page-locked: each batch takes a power of two" if page_locked else "",
    )  # fmt: skip
    return lead


class DeviceLoader:
    """Gives the batches of a loader on the device, the next one copied while this one computes.

    On a GPU the copy runs on a stream of its own, from the pinned memory that the loader hands out.
    On a CPU there is nothing to copy; the loader's workers read ahead.
    """

    def __init__(self, loader: Iterable[Batch | PackedBatch], device: torch.device) -> None:
        """Args:

        loader: batches on the host.
        device: where the step computes.
        """
        self._loader = loader
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        """The loader's batches, in order; its workers start now, not with the first of them."""
        batches = iter(self._loader)
        if self._device.type == "cuda":
            return self._copied_ahead(batches)
        return (one.unpack() if isinstance(one, PackedBatch) else one for one in batches)

    def _copied_ahead(self, batches: Iterator[Batch | PackedBatch]) -> Iterator[Batch]:
        stream = torch.cuda.Stream(self._device)
        ready: Batch | None = None
        remedy = "lower CACHE.PREFETCH_BYTES or DATALOADER.NUM_WORKERS"
        for batch in naming_pinning(batches, remedy):
            packed = batch if isinstance(batch, PackedBatch) else pack(batch, shared=False)
            with torch.cuda.stream(stream):
                following = packed.to(self._device)
            if ready is not None:
                yield ready
            step = torch.cuda.current_stream(self._device)
            # The copy began before the last step and is over by now, or the step waits for it.
            step.wait_stream(stream)
            # The allocator must know that the step's stream uses memory of the copying stream.
            following.memory.record_stream(step)
            ready = following.unpack()
        if ready is not None:
            yield ready
