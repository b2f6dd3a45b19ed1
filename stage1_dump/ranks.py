"""Ranks: which of the processes of one dump this is, and how they share the shards.

Ranks exchange nothing but claims in the store. They may start and stop at any time, on any
machine; whoever is there takes the next free shard.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

from configs.wording import listed
from storage import CacheError, CacheWriter, ShardId
from storage.claims import MAX_LEASE_SEC
from storage.keeper import Keeper
from storage.layout import commit_key

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Others may take over a shard when its rank has not been heard of for so long.
LEASE_SEC = MAX_LEASE_SEC
# How often a rank says for whom it waits, and of how many shards.
_SAY_EVERY_SEC = 30.0
_NAMED = 3

# (rank, world size, rank on this machine) as the launchers name them.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
# (number, count) of a job among others that do the same, and what sets them.
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
_INDEXED = ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process of a dump.

    Attributes:
        number, world_size: which of how many. They decide where a rank begins, and nothing else:
            every rank goes on until the cache is complete.
        local: counts on its machine, within its launcher.
        gpu: number of its GPU among those that it sees.
    """

    number: int = 0
    world_size: int = 1
    local: int = 0
    gpu: int = 0

    @property
    def owner(self) -> str:
        """How claims name this process."""
        return f"rank {self.number} of {self.world_size}, {socket.gethostname()}:{os.getpid()}"


def current_rank(environment: Mapping[str, str]) -> Rank:
    """Find out which rank this is from what launchers and schedulers set.

    torchrun or srun start the processes of a job; a Slurm array or an indexed Kubernetes job may
    start that job several times. The ranks of all of these jobs count through.

    Raises:
        ValueError: the variables are incomplete, no numbers, or contradict each other.
    """
    inner = _launched_rank(environment)
    # torchrun over several machines has counted them already.
    if environment.get("GROUP_WORLD_SIZE", "1") != "1":
        return inner
    number, count = _job_number(environment)
    return replace(
        inner,
        number=number * inner.world_size + inner.number,
        world_size=count * inner.world_size,
    )


def _launched_rank(environment: Mapping[str, str]) -> Rank:
    if _TORCHRUN[0] in environment:
        number, world_size, local = _numbers(environment, _TORCHRUN)
        gpu = local
    elif _SRUN[0] in environment:
        # A batch script without srun has the number 0, and no count unless one was asked for.
        number, world_size, local = _numbers({_SRUN[1]: "1", **environment}, _SRUN)
        # Slurm has given each task its own, which it sees as number 0.
        gpu = 0 if "SLURM_GPUS_PER_TASK" in environment else local
    else:
        return Rank()
    if not 0 <= number < world_size or local < 0:
        raise ValueError(
            "the launcher's environment contradicts itself: "
            f"rank {number} of {world_size}, number {local} on its machine"
        )
    return Rank(number=number, world_size=world_size, local=local, gpu=gpu)


def _job_number(environment: Mapping[str, str]) -> tuple[int, int]:
    """Number and count of this job among those that do the same; (0, 1) for one on its own."""
    if _ARRAY[0] in environment:
        number, count = _numbers(environment, _ARRAY)
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
        # Numbers may have gaps (--array=1,4,9); two tasks that begin at one place do no harm.
        return (number - first) // step % count, count
    if _INDEXED[0] in environment:
        number, count = _numbers(environment, _INDEXED)
        if not 0 <= number < count:
            raise ValueError(
                f"{_INDEXED[1]} is {count}, but {_INDEXED[0]} is {number}; expected the job's "
                "completions, as in tools/dump_kubernetes.yaml"
            )
        return number, count
    return 0, 1


def _numbers(environment: Mapping[str, str], names: tuple[str, ...]) -> list[int]:
    stated = {name: environment[name] for name in names if name in environment}
    try:
        return [int(stated[name]) for name in names]
    except (KeyError, ValueError):
        raise ValueError(
            f"the launcher's environment must hold numbers in {', '.join(names)}; got {stated}"
        ) from None


def pick_device(name: str, rank: Rank) -> torch.device:
    """Give each rank of a machine its own GPU.

    Args:
        name: `MODEL.DEVICE`; plain `cuda` means the rank's own GPU.

    Raises:
        ValueError: there is no such GPU.
    """
    # Here, since `status` needs this module but no device.
    import torch

    from detectors.launching import check_device

    device = torch.device(name)
    if device.type != "cuda":
        return device
    if device.index is None:
        device = torch.device("cuda", rank.gpu)
    check_device(name)
    count = torch.cuda.device_count()
    assert device.index is not None
    if device.index >= count:
        raise ValueError(
            f"MODEL.DEVICE: rank {rank.number} needs {device}, but PyTorch sees {count} GPUs; "
            "start fewer ranks on this machine, or set MODEL.DEVICE cpu"
        )
    torch.cuda.set_device(device)
    return device


def share_of(shards: Sequence[ShardId], rank: Rank) -> list[ShardId]:
    """Deal shards out like cards: every rank gets its share of the first, and of the last."""
    return list(shards[rank.number :: rank.world_size])


def rotated(shards: Sequence[ShardId], rank: Rank) -> list[ShardId]:
    """Start each rank at its own place, so that they seldom contend for a shard."""
    start = len(shards) * rank.number // rank.world_size
    return [*shards[start:], *shards[:start]]


class Waiting:
    """Says for whose shards a rank waits, and until when: at once, and then now and again."""

    def __init__(self, writer: CacheWriter) -> None:
        """Args: the writer whose shards are waited for."""
        self._writer = writer
        self._said: tuple[int, float] = (0, 0.0)

    def say(self, missing: Sequence[ShardId]) -> None:
        """Log that these shards are waited for, unless it was said a moment ago."""
        number, when = self._said
        if number == len(missing) and time.monotonic() - when < _SAY_EVERY_SEC:
            return
        self._said = len(missing), time.monotonic()
        # Of an object store each look is two requests.
        holders = ((shard, self._writer.holder(shard)) for shard in missing[:_NAMED])
        held = [
            f"{shard} is free by now" if claim is None or claim.ended
            else f"{shard} is held by {claim}"
            for shard, claim in holders
        ]  # fmt: skip
        named = listed(held, shown=_NAMED, total=len(missing), between="; ")
        logger.info("waiting for %d shards of other ranks: %s", len(missing), named)


class Claims:
    """The shards that this rank holds, kept alive by a thread until they are dropped.

    A context manager: leaving it drops whatever is still held, so that an interrupted rank leaves
    its shards to the others at once.
    """

    def __init__(self, writer: CacheWriter, owner: str) -> None:
        """Args: the writer whose shards are claimed, and how this rank names itself."""
        self._writer = writer
        self._owner = owner
        self._held: set[ShardId] = set()
        self._lock = threading.Lock()
        self._keeper = Keeper(self._keep_alive, every_sec=LEASE_SEC / 3, name="claims")

    def __enter__(self) -> Claims:
        self._keeper.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._keeper.stop()
        with self._lock:  # a shard that is being claimed ahead is held now, or never
            held = list(self._held)
        for shard in held:
            try:
                self.drop(shard)
            except (CacheError, OSError) as problem:
                # Nothing is lost: the claim runs out. The error on the way out matters more.
                logger.warning("could not give shard %s back: %s", shard, problem)

    def take(self, shard: ShardId) -> bool:
        """Claim a shard that is still to be done; False if another rank holds or finished it."""
        with self._lock:
            if self._keeper.is_stopped or not self._writer.claim(shard, self._owner, LEASE_SEC):
                return False
            self._held.add(shard)
        # Looked up only now: before the claim, its holder could have finished after the look.
        if self._writer.location.get(commit_key(shard)) is None:
            return True
        self.drop(shard)
        return False

    def drop(self, shard: ShardId) -> None:
        """Give a shard up, committed or not."""
        with self._lock:
            self._held.discard(shard)
            self._writer.release(shard)

    def _keep_alive(self) -> None:
        for shard in list(self._held):
            with self._lock:
                if shard in self._held:
                    self._renew(shard)

    def _renew(self, shard: ShardId) -> None:
        try:
            self._writer.claim(shard, self._owner, LEASE_SEC)
        except (CacheError, OSError) as error:
            # A store that cannot be reached fails the write as well, and says so there.
            logger.warning("could not renew the claim on shard %s: %s", shard, error)
