"""Shards written in threads while the next ones are computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import torch

from storage import ShardId

from .arrays import ShardArrays
from .profile import WRITERS as WAITING
from .profile import Profile


class ShardWriters:
    """Hands finished shards to threads, and waits when all of them are busy.

    So at most `num_writers` + 1 shards are in memory: those being written and the one being
    computed. A context manager: leaving it waits for what is being written.
    """

    def __init__(
        self,
        write: Callable[[ShardId, ShardArrays], None],
        profile: Profile,
        device: torch.device,
        num_writers: int,
    ) -> None:
        """Args: what a thread does with a shard, where the waiting is counted, the device that the
        shards' codes come from, and the number of threads.
        """
        self._num_writers = num_writers
        self._write = write
        self._profile = profile
        self._executor = ThreadPoolExecutor(
            num_writers, thread_name_prefix="write", initializer=_use, initargs=(device,)
        )
        self._pending: set[Future[None]] = set()

    def __enter__(self) -> ShardWriters:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    def submit(self, shard: ShardId, arrays: ShardArrays) -> None:
        """Have a shard written; raises what the writing of an earlier one raised."""
        self._wait_until(self._num_writers - 1)
        self._pending.add(self._executor.submit(self._write, shard, arrays))

    def finish(self) -> None:
        """Wait for all shards; raises what their writing raised."""
        self._wait_until(0)

    def _wait_until(self, num_left: int) -> None:
        with self._profile.step(WAITING):
            while len(self._pending) > num_left:
                done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
                for one in done:
                    one.result()


def _use(device: torch.device) -> None:
    # A thread starts with GPU 0: waiting for a copy there would occupy memory of another rank's.
    if device.type == "cuda":
        torch.cuda.set_device(device)
