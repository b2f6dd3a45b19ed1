"""Which image and which view come next: a pure function of seed, rank and iteration.

The habits are detectron2's: an endless stream, shuffled anew in every epoch, batched so that wide
and tall images do not share a batch, split among the ranks. The batch is split, not the stream, so
that any number of ranks sees the same images in the same steps. Nothing needs to be stored to
resume: the stream is replayed without reading anything, a few seconds for a full COCO schedule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One image of one batch: its position in the dataset and the view it shows this time.

    `epoch` counts how often it was shown before.
    """

    position: int
    view: int
    epoch: int = 0


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """Images without labels among those of a sampler, behind all others.

    Attributes:
        images: how many there are.
        of_batch: how many are in a batch of all ranks together.
        parts: of a rank's batch that are run one after the other, and all have labelled images.
    """

    images: int = 0
    of_batch: int = 0
    parts: int = 1


class ViewBatchSampler(Sampler[list[Draw]]):
    """Batches of draws for one rank, endless.

    An image shows view (e + offset) mod V when it was shown e times before, with a fixed offset of
    its own, so that every epoch mixes all views and V epochs show each of them once. The last
    batches may show some of the views alone, in the same way. With repeat factors an epoch shows an
    image as often as its factor says; what of it is no whole number is drawn anew in every epoch.
    Images without labels have epochs of their own, and come behind the labelled ones of a batch, of
    the same orientation where there are any.
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
        repeat_factors: np.ndarray | None = None,
        unlabelled: Unlabelled = Unlabelled(),
        last_views: Sequence[int] = (),
        last_from: int = 0,
    ) -> None:
        """Args:

        is_wide: (n,) bool, one entry an image: wider than high.
        unlabelled: which of the images have no labels.
        num_views: V, views of each image.
        batch_size: images in a batch of all ranks together, a multiple of `world_size`.
        seed: base of every shuffle.
        rank, world_size: this process among those that share the stream.
        group_by_aspect: keep wide and tall images in separate batches.
        repeat_factors: (n,) float, how often an epoch shows an image on average, at least 1 each;
            None: once. Of labelled images alone.
        last_views: numbers of the views of the batches from iteration `last_from` on; none: all.
        """
        self._num_labelled = len(is_wide) - unlabelled.images
        if self._num_labelled == 0:
            raise ValueError(
                "no image is left to train on: the dataset is empty, or none has an object "
                "(DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
            )
        self._group = is_wide.astype(int) if group_by_aspect else np.zeros(len(is_wide), int)
        self._repeat_factors = repeat_factors
        self._unlabelled = unlabelled
        self._views: Sequence[int] = range(num_views)
        self._last_views = last_views
        self._last_from = last_from
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._offsets = np.concatenate(
            [
                np.random.default_rng([seed, 0]).integers(num_views, size=self._num_labelled),
                np.random.default_rng([seed, 3]).integers(num_views, size=unlabelled.images),
            ]
        )
        self.first_iter = 0

    def __iter__(self) -> Iterator[list[Draw]]:
        """Batches from iteration `first_iter` on."""
        pending: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        unlabelled = self._unlabelled_streams()
        iteration = 0
        for position, epoch in self._stream():
            number = self._group[position]
            group = pending[number]
            group.append((position, epoch))
            if len(group) == self._batch_size - self._unlabelled.of_batch:
                group += islice(unlabelled[number], self._unlabelled.of_batch)
                if iteration >= self.first_iter:
                    own = self._in_parts(group[self._rank :: self._world_size])
                    yield [self._draw(position, epoch, iteration) for position, epoch in own]
                group.clear()
                iteration += 1

    def _in_parts(self, own: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """A rank's batch, labelled images first in each of its parts."""
        parts = self._unlabelled.parts if self._unlabelled.of_batch else 1
        return [one for part in range(parts) for one in own[part::parts]]

    def _draw(self, position: int, epoch: int, iteration: int) -> Draw:
        is_last = self._last_views and iteration >= self._last_from
        views = self._last_views if is_last else self._views
        view = views[(epoch + int(self._offsets[position])) % len(views)]
        return Draw(position=position, view=view, epoch=epoch)

    def _stream(self) -> Iterator[tuple[int, int]]:
        """Positions, and how often each was shown before: the stream that all ranks share."""
        shown = [0] * self._num_labelled
        for epoch in count():
            members = self._members(epoch)
            order = np.random.default_rng([self._seed, 1, epoch]).permutation(len(members))
            for position in members[order].tolist():
                yield position, shown[position]
                shown[position] += 1

    def _members(self, epoch: int) -> np.ndarray:
        """The positions that an epoch shows, ascending, as often as it shows them."""
        positions = np.arange(self._num_labelled)
        if self._repeat_factors is None:
            return positions
        whole = np.floor(self._repeat_factors)
        drawn = np.random.default_rng([self._seed, 2, epoch]).random(len(positions))
        return np.repeat(positions, (whole + (drawn < self._repeat_factors - whole)).astype(int))

    def _unlabelled_streams(self) -> list[Iterator[tuple[int, int]]]:
        """Of each orientation, the images without labels; one without any takes the other's."""
        positions = np.arange(self._num_labelled, len(self._group))
        members = [positions[self._group[positions] == number] for number in (0, 1)]
        streams = [self._unlabelled_stream(number, one) for number, one in enumerate(members)]
        return [streams[number if len(members[number]) else 1 - number] for number in (0, 1)]

    def _unlabelled_stream(self, number: int, members: np.ndarray) -> Iterator[tuple[int, int]]:
        for epoch in count():
            order = np.random.default_rng([self._seed, 4, number, epoch]).permutation(len(members))
            yield from ((position, epoch) for position in members[order].tolist())
