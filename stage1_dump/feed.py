"""Which shards this rank takes, claimed while the one before is still computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from storage import CacheWriter, Geometry, ShardId

from .profile import CLAIM, Profile
from .ranks import Claims, Rank, rotated, share_of


class ShardFeed:
    """Batches of record numbers of the shards that this rank gets, for the loader to render.

    The loader asks a few batches ahead, and one shard more is claimed ahead of that in a thread:
    neither the workers nor the device wait for a claim. More would keep shards from other ranks.

    A rank takes its own share first and then whatever is left of the others'. Costly shards come
    first: those of rare sizes, with few records, fill the gaps at the end, when a rank that still
    had a large one to do would keep all others waiting.
    """

    def __init__(
        self,
        writer: CacheWriter,
        claims: Claims,
        rank: Rank,
        geometries: Iterable[Geometry],
        *,
        batch: int,
        profile: Profile,
    ) -> None:
        """Args: the cache, this rank's claims, the buckets' sizes, records in a teacher forward."""
        self._writer = writer
        self._claims = claims
        self._rank = rank
        self._pixels = {one.name: one.height * one.width for one in geometries}
        self._batch = batch
        self._profile = profile
        self._missing: Sequence[ShardId] = ()
        self.claimed: deque[ShardId] = deque()

    def offer(self, missing: Sequence[ShardId]) -> None:
        """Set the shards that the next iteration takes from."""
        self._missing = missing

    def num_batches(self, shard: ShardId) -> int:
        """Teacher forwards of a shard."""
        return -(-len(self._writer.planned_of(shard)) // self._batch)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        with ThreadPoolExecutor(1, thread_name_prefix="claim") as executor:
            ahead = executor.submit(self._claim_next, order)
            while (shard := ahead.result()) is not None:
                ahead = executor.submit(self._claim_next, order)
                self.claimed.append(shard)
                # Images that are left out too: their blank views fill the batches.
                records = self._writer.planned_of(shard).tolist()
                for start in range(0, len(records), self._batch):
                    yield records[start : start + self._batch]

    def _claim_next(self, order: Iterator[ShardId]) -> ShardId | None:
        with self._profile.step(CLAIM):
            return next((shard for shard in order if self._claims.take(shard)), None)

    def _order(self) -> Iterator[ShardId]:
        ordered = sorted(self._missing, key=self._cost, reverse=True)
        own = share_of(ordered, self._rank)
        yield from own
        others = set(ordered) - set(own)
        if others:
            # Their ranks have been at work meanwhile; a look at each shard would cost far more.
            others &= set(self._writer.missing())
            yield from rotated([shard for shard in ordered if shard in others], self._rank)

    def _cost(self, shard: ShardId) -> int:
        """Pixels that the teacher sees of a shard, padding included."""
        return self._pixels[shard.bucket] * len(self._writer.planned_of(shard))
