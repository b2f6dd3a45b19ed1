"""Data ahead of the step: how much the workers hold ready, and the copy to the device.

Both are bounded. A record takes from a few megabytes to ninety, so the workers' lead is counted in
bytes; on the device lies the batch that is computed and the one after it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from torch.utils.data import Sampler

from detectors.packing import Batch, PackedBatch, pack
from detectors.pinned import block_bytes, naming_pinning

logger = logging.getLogger(__name__)

# Parts a worker runs ahead at most; more than a few smooth nothing any more.
_MAX_FACTOR = 4


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How far the workers of one rank run ahead.

    Attributes:
        workers: processes that read.
        factor: parts each of them holds ready or reads.
        parts: of a batch, each of which one worker makes.
        part_bytes: of the largest part, as it lies in memory.
    """

    workers: int
    factor: int
    parts: int
    part_bytes: int


def plan_lead(
    *, workers: int, images: int, item_bytes: int, limit_bytes: int, page_locked: bool = False
) -> Lead:
    """Bound what the workers hold ready, in bytes; one part is always allowed.

    A batch is one part where a batch for each worker fits the limit: that is the least work for the
    process that trains. Else it is made in parts, by several workers at once, so that none of them
    is idle: 16 images in preset `balanced` at 800x1344 are 180 MB, of which 1 GiB holds four.

    Args:
        workers: DATALOADER.NUM_WORKERS.
        images: of a batch of this rank.
        item_bytes: of the largest image with its record.
        limit_bytes: CACHE.PREFETCH_BYTES.
        page_locked: whether it comes to lie in page-locked memory.

    Returns:
        No more workers than asked for, fewer where one image for each would be too much.
    """

    def size(parts: int) -> int:
        part_bytes = -(-images // parts) * item_bytes
        return max(1, block_bytes(part_bytes) if page_locked else part_bytes)

    fitting = (parts for parts in range(1, images + 1) if workers * size(parts) <= limit_bytes)
    parts = next(fitting, images) if workers else 1
    held = max(1, limit_bytes // size(parts))
    used = min(workers, held)
    factor = min(_MAX_FACTOR, held // used) if used else 0
    lead = Lead(workers=used, factor=factor, parts=parts, part_bytes=size(parts))
    if used:
        _tell(lead, workers, limit_bytes, page_locked)
    return lead


def _tell(lead: Lead, workers: int, limit_bytes: int, page_locked: bool) -> None:
    if lead.workers < workers:
        logger.warning(
            "DATALOADER.NUM_WORKERS %d is lowered to %d: CACHE.PREFETCH_BYTES %d holds no more "
            "images of up to %d bytes", workers, lead.workers, limit_bytes, lead.part_bytes,
        )  # fmt: skip
    held = lead.workers * lead.factor
    logger.info(
        "%d workers hold up to %d %s ready, %.1f MB at most%s",
        lead.workers, held, "batches" if lead.parts == 1 else f"of {lead.parts} parts of a batch",
        held * lead.part_bytes / 1e6,
        ", page-locked: each takes a power of two" if page_locked else "",
    )  # fmt: skip


class PartSampler(Sampler[list[Any]]):
    """The parts of another sampler's batches, in order."""

    def __init__(self, batches: Iterable[list[Any]], parts: int) -> None:
        """Args: the sampler, and how many parts of about equal size a batch has."""
        self._batches = batches
        self._parts = parts

    def __iter__(self) -> Iterator[list[Any]]:
        """Endless if the batches are."""
        for batch in self._batches:
            ends = [len(batch) * one // self._parts for one in range(self._parts + 1)]
            yield from (batch[start:end] for start, end in pairwise(ends))


class DeviceLoader:
    """Gives the batches of a loader on the device, the next one copied while this one computes.

    On a GPU the copy runs on a stream of its own, from page-locked memory.
    On a CPU there is nothing to copy; the loader's workers read ahead.
    """

    def __init__(
        self, loader: Iterable[Batch | PackedBatch], device: torch.device, parts: int = 1
    ) -> None:
        """Args:

        loader: batches on the host, or parts of them.
        device: where the step computes.
        parts: that make a batch.
        """
        self._loader = loader
        self._device = device
        self._parts = parts

    def __iter__(self) -> Iterator[Batch]:
        """The loader's batches, in order; its workers start now, not with the first of them."""
        loaded = iter(self._loader)
        if self._device.type == "cuda":
            return self._copied_ahead(loaded)
        return map(_joined, self._batches(loaded))

    def _batches(self, loaded: Iterator[Batch | PackedBatch]) -> Iterator[list[Any]]:
        """Each batch as a list of its parts."""
        while batch := list(islice(loaded, self._parts)):
            yield batch

    def _copied_ahead(self, loaded: Iterator[Batch | PackedBatch]) -> Iterator[Batch]:
        stream = torch.cuda.Stream(self._device)
        ready: Batch | None = None
        remedy = "lower CACHE.PREFETCH_BYTES or DATALOADER.NUM_WORKERS"
        for batch in self._batches(naming_pinning(loaded, remedy)):
            packed = [_page_locked(part) for part in batch]
            with torch.cuda.stream(stream):
                following = [one.to(self._device) for one in packed]
            if ready is not None:
                yield ready
            step = torch.cuda.current_stream(self._device)
            # The copy began before the last step and is over by now, or the step waits for it.
            step.wait_stream(stream)
            # The allocator must know that the step's stream uses memory of the copying stream.
            for one in following:
                one.memory.record_stream(step)
            ready = _joined(following)
        if ready is not None:
            yield ready


def _page_locked(part: Batch | PackedBatch) -> PackedBatch:
    """What a worker packed, the loader has page-locked; without workers both are done here."""
    if isinstance(part, PackedBatch):
        return part
    return pack(part, shared=False, page_locked=True)


def _joined(parts: Iterable[Batch | PackedBatch]) -> Batch:
    unpacked = (one.unpack() if isinstance(one, PackedBatch) else one for one in parts)
    return [item for part in unpacked for item in part]
