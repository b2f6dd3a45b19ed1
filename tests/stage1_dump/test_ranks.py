"""Which rank a process is, and how ranks share shards."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from stage1_dump import ranks
from stage1_dump.ranks import Claims, Rank, Waiting, current_rank, pick_device, rotated
from storage import ShardId
from tests.storage.cases import open_writer

SHARDS = [ShardId("0064x0096", number) for number in range(6)]


def test_a_process_without_a_launcher_is_the_only_rank() -> None:
    assert current_rank({}) == Rank(number=0, world_size=1, local=0)
    assert current_rank({"SLURM_NTASKS": "4"}) == Rank()


def test_torchrun_and_slurm_say_which_rank_this_is() -> None:
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    slurm = {"SLURM_PROCID": "6", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2"}
    assert current_rank(torchrun) == Rank(number=5, world_size=8, local=1, gpu=1)
    assert current_rank(slurm) == Rank(number=6, world_size=8, local=2, gpu=2)
    assert current_rank(slurm | torchrun) == Rank(number=5, world_size=8, local=1, gpu=1)


def test_slurm_may_give_each_task_a_gpu_that_it_sees_alone() -> None:
    slurm = {"SLURM_PROCID": "6", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2"}
    assert current_rank(slurm | {"SLURM_GPUS_PER_TASK": "1"}).gpu == 0


def test_a_batch_script_without_srun_is_one_process() -> None:
    assert current_rank({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == Rank()


@pytest.mark.parametrize(
    "job",
    [
        lambda number: {
            "SLURM_ARRAY_TASK_ID": str(10 + 5 * number), "SLURM_ARRAY_TASK_COUNT": "3",
            "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "5",
        },
        lambda number: {"JOB_COMPLETION_INDEX": str(number), "JOB_COMPLETIONS": "3"},
    ],
)  # fmt: skip
def test_the_ranks_of_several_jobs_count_through(job: Callable[[int], dict[str, str]]) -> None:
    ranks = [
        current_rank(job(number) | {"RANK": str(n), "WORLD_SIZE": "2", "LOCAL_RANK": str(n)})
        for number in range(3)
        for n in range(2)
    ]
    assert [rank.number for rank in ranks] == list(range(6))
    assert {rank.world_size for rank in ranks} == {6}
    assert [rank.gpu for rank in ranks] == [0, 1] * 3
    alone = [current_rank(job(number)) for number in range(3)]
    assert alone == [Rank(number=number, world_size=3) for number in range(3)]


def test_array_numbers_with_gaps_are_ranks_too() -> None:
    array = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}
    for number in (1, 4, 9):
        rank = current_rank(array | {"SLURM_ARRAY_TASK_ID": str(number)})
        assert 0 <= rank.number < rank.world_size == 3


def test_torchrun_over_several_pods_has_counted_them() -> None:
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "GROUP_WORLD_SIZE": "2"}
    rank = current_rank(torchrun | {"JOB_COMPLETION_INDEX": "1"})
    assert (rank.number, rank.world_size) == (5, 8)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"SLURM_PROCID": "x", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"},
        {"SLURM_ARRAY_TASK_ID": "3"},
        {"JOB_COMPLETION_INDEX": "3"},
    ],
)
def test_a_broken_launcher_environment_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="launcher's environment"):
        current_rank(environment)


def test_a_kubernetes_index_beyond_the_count_is_refused() -> None:
    with pytest.raises(ValueError, match="JOB_COMPLETIONS is 3, but JOB_COMPLETION_INDEX is 3"):
        current_rank({"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETIONS": "3"})


def test_ranks_start_at_different_shards_and_reach_all() -> None:
    orders = [rotated(SHARDS, Rank(number=number, world_size=3)) for number in range(3)]
    assert len({order[0] for order in orders}) == 3
    assert all(sorted(order) == SHARDS for order in orders)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"cuda:2, but PyTorch sees 2 GPUs"):
        pick_device("cuda", Rank(number=2, world_size=4, local=2, gpu=2))
    assert pick_device("cpu", Rank(number=2, world_size=4, local=2)) == torch.device("cpu")


@dataclass
class FakeLocation:
    committed: set[str] = field(default_factory=set)

    def get(self, key: str) -> bytes | None:
        return b"{}" if key in self.committed else None


@dataclass
class FakeWriter:
    """Counts claims; nobody else is there."""

    location: FakeLocation = field(default_factory=FakeLocation)
    claims: list[ShardId] = field(default_factory=list)
    released: list[ShardId] = field(default_factory=list)

    def claim(self, shard: ShardId, owner: str, seconds: float) -> bool:
        self.claims.append(shard)
        return True

    def release(self, shard: ShardId) -> None:
        self.released.append(shard)


def test_a_claim_is_kept_alive_until_it_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LEASE_SEC", 0.03)
    writer = FakeWriter()
    with Claims(writer, "me") as claims:  # type: ignore[arg-type]
        assert claims.take(SHARDS[0])
        deadline = time.monotonic() + 10
        while len(writer.claims) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        claims.drop(SHARDS[0])
        renewed = len(writer.claims)
        time.sleep(0.05)
    assert renewed >= 4
    assert len(writer.claims) == renewed


def test_an_interrupted_rank_gives_its_claims_back() -> None:
    writer = FakeWriter()
    with pytest.raises(KeyboardInterrupt), Claims(writer, "me") as claims:  # type: ignore[arg-type]
        claims.take(SHARDS[1])
        raise KeyboardInterrupt
    assert writer.released == [SHARDS[1]]


def test_a_shard_that_was_finished_meanwhile_is_not_taken() -> None:
    writer = FakeWriter(FakeLocation({"commits/0064x0096/00002.json"}))
    with Claims(writer, "me") as claims:  # type: ignore[arg-type]
        assert not claims.take(SHARDS[2])
        assert writer.released == [SHARDS[2]]
        assert claims.take(SHARDS[3])


def test_a_rank_that_waits_says_for_whom_of_which_shard_and_until_when(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="stage1_dump")
    writer, other = open_writer(tmp_path / "cache"), open_writer(tmp_path / "cache")
    first, second = writer.missing()[:2]
    assert other.claim(first, "rank 1 of 2, host:7", 60)
    waiting = Waiting(writer)
    for _ in range(3):  # once, not at every look
        waiting.say([first, second])
    (line,) = [record.message for record in caplog.records]
    assert re.fullmatch(
        rf"waiting for 2 shards of other ranks: {first} is held by rank 1 of 2, host:7 until"
        rf" \d\d:\d\d:\d\d \(for \d\d s\); {second} is free by now",
        line,
    )
    waiting.say([second])
    assert len(caplog.records) == 2
