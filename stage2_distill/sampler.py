"""Which image and which view come next: a pure function of seed, rank and iteration.

The habits are detectron2's: an endless stream, shuffled anew in every epoch, batched so that wide
and tall images do not share a batch, split among the ranks. The batch is split, not the stream, so
that any number of ranks sees the same images in the same steps. Nothing needs to be stored to
resume: the stream is replayed without reading anything, a few seconds for a full COCO schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One image of one batch: its position in the dataset and the view it shows this time."""

    position: int
    view: int


class ViewBatchSampler(Sampler[list[Draw]]):
    """Batches of draws for one rank, endless.

    In epoch e an image shows view (e + offset) mod V with a fixed offset of its own, so that every
    epoch mixes all views and V epochs show each of them once.
    """

    def __init__(
        self,
        *,
        is_wide: np.ndarray,
        num_views: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        group_by_aspect: bool = True,
    ) -> None:
        """Args:

        is_wide: (n,) bool, one entry an image: wider than high.
        num_views: V, views of each image.
        batch_size: images in a batch of all ranks together, a multiple of `world_size`.
        seed: base of every shuffle.
        rank, world_size: this process among those that share the stream.
        group_by_aspect: keep wide and tall images in separate batches.
        """
        if len(is_wide) == 0:
            raise ValueError(
                "no image is left to train on: the dataset is empty, or none has an object "
                "(DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
            )
        self._group = is_wide.astype(int) if group_by_aspect else np.zeros(len(is_wide), int)
        self._num_views = num_views
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._offsets = np.random.default_rng([seed, 0]).integers(num_views, size=len(is_wide))
        self.first_iter = 0

    def __iter__(self) -> Iterator[list[Draw]]:
        """Batches from iteration `first_iter` on."""
        pending: tuple[list[Draw], list[Draw]] = ([], [])
        iteration = 0
        for draw in self._draws():
            group = pending[self._group[draw.position]]
            group.append(draw)
            if len(group) == self._batch_size:
                if iteration >= self.first_iter:
                    yield group[self._rank :: self._world_size]
                group.clear()
                iteration += 1

    def _draws(self) -> Iterator[Draw]:
        """The stream that all ranks share."""
        num_images = len(self._group)
        for epoch in count():
            order = np.random.default_rng([self._seed, 1, epoch]).permutation(num_images)
            views = (epoch + self._offsets[order]) % self._num_views
            for position, view in zip(order.tolist(), views.tolist(), strict=True):
                yield Draw(position=position, view=view)
