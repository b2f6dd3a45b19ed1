"""The promise that a store's bytes do not depend on how it was dumped.

Real processes, really killed. The long forms run with GID_FAULTS=full in the environment.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.stage1_dump.conftest import Configure
from tests.stage1_dump.helpers import dump, start_rank, store_bytes

TWO_VIEWS = {"NUM": 2}
# Small shards: more moments between, before and within commits.
MANY_SHARDS = {"VIEWS": {"NUM": 4}, "CACHE": {"SHARD_RECORDS": 2}}

long_form = pytest.mark.skipif(
    os.environ.get("GID_FAULTS") != "full", reason="a long form; GID_FAULTS=full runs it"
)


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed processes leave claims behind; no test need wait long until they run out."""
    monkeypatch.setattr("stage1_dump.ranks.LEASE_SEC", 3.0)
    monkeypatch.setattr("stage1_dump.dump.POLL_SEC", 0.2)


def commits(store: Path) -> list[Path]:
    return list((store / "commits").rglob("*.json"))


def wait_for(condition: Callable[[], object], child: BaseProcess) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)


def kill(child: BaseProcess) -> None:
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()


def test_a_killed_dump_resumes_to_the_same_bytes(reference: Path, configure: Configure) -> None:
    config = configure(VIEWS=TWO_VIEWS)
    store = config.with_suffix("")
    child = start_rank(config)
    wait_for(lambda: commits(store), child)
    kill(child)
    left = len(commits(reference)) - len(commits(store))
    assert 0 < left < len(commits(reference))
    assert dump(config).shards == left
    assert store_bytes(store) == store_bytes(reference)


def test_two_ranks_give_the_bytes_of_one(reference: Path, configure: Configure) -> None:
    config = configure(VIEWS=TWO_VIEWS)
    ranks = [start_rank(config, rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        rank.join(timeout=90)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert store_bytes(config.with_suffix("")) == store_bytes(reference)


def test_the_number_of_image_workers_changes_no_byte(reference: Path, configure: Configure) -> None:
    config = configure(VIEWS=TWO_VIEWS, DATALOADER={"NUM_WORKERS": 2})
    dump(config)
    assert store_bytes(config.with_suffix("")) == store_bytes(reference)


@long_form
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_workers", [0, 2])
def test_three_kills_at_random_moments_change_no_byte(
    configure: Configure, seed: int, num_workers: int
) -> None:
    whole = configure("whole", **MANY_SHARDS)
    dump(whole)
    config = configure(**MANY_SHARDS, DATALOADER={"NUM_WORKERS": num_workers})
    store = config.with_suffix("")
    moments = random.Random(seed)
    last = 2 * len(commits(whole.with_suffix(""))) // 3
    for done in sorted(moments.sample(range(last), 3)):
        child = start_rank(config)
        # From the first steps of a process on; how far it is then depends on the machine.
        time.sleep(moments.uniform(0, 0.2))
        wait_for(lambda: len(commits(store)) >= done, child)  # noqa: B023 (waits at once)
        time.sleep(moments.uniform(0, 0.02))
        assert child.is_alive(), "finished before it was killed"
        kill(child)
    assert main_exit_code(config) == 0
    assert store_bytes(config.with_suffix("")) == store_bytes(whole.with_suffix(""))


def main_exit_code(config: Path) -> int | None:
    """Let one undisturbed rank finish."""
    child = start_rank(config)
    child.join(timeout=120)
    return child.exitcode


@long_form
def test_four_ranks_killed_and_restarted_give_the_bytes_of_one(configure: Configure) -> None:
    whole = configure("whole", **MANY_SHARDS)
    dump(whole)
    config = configure(**MANY_SHARDS)
    moments = random.Random(0)
    ranks = {number: start_rank(config, number, world_size=4) for number in range(4)}
    struck = 0
    for _ in range(6):
        time.sleep(moments.uniform(0, 0.3))
        number = moments.randrange(4)
        struck += ranks[number].is_alive()
        kill(ranks[number])
        ranks[number] = start_rank(config, number, world_size=4)
    for rank in ranks.values():
        rank.join(timeout=120)
    assert [rank.exitcode for rank in ranks.values()] == [0] * 4
    assert struck >= 2
    assert store_bytes(config.with_suffix("")) == store_bytes(whole.with_suffix(""))


@long_form
def test_four_ranks_of_which_two_die_for_good_give_the_bytes_of_one(configure: Configure) -> None:
    whole = configure("whole", **MANY_SHARDS)
    dump(whole)
    config = configure(**MANY_SHARDS)
    ranks = [start_rank(config, number, world_size=4) for number in range(4)]
    wait_for(lambda: commits(config.with_suffix("")), ranks[0])
    for rank in ranks[:2]:
        kill(rank)
    for rank in ranks[2:]:
        rank.join(timeout=120)
    assert [rank.exitcode for rank in ranks[2:]] == [0, 0]
    assert store_bytes(config.with_suffix("")) == store_bytes(whole.with_suffix(""))


@long_form
@pytest.mark.parametrize("seed", range(4))
def test_a_rank_that_stands_still_holds_nobody_up_and_harms_nothing_when_it_goes_on(
    configure: Configure, seed: int
) -> None:
    whole = configure("whole", **MANY_SHARDS)
    dump(whole)
    config = configure(**MANY_SHARDS)
    store = config.with_suffix("")
    ranks = [start_rank(config, number, world_size=2) for number in range(2)]
    wait_for(lambda: commits(store), ranks[0])
    time.sleep(random.Random(seed).uniform(0, 0.1))
    os.kill(ranks[0].pid or 0, signal.SIGSTOP)
    try:
        ranks[1].join(timeout=120)
        assert ranks[1].exitcode == 0
        assert store_bytes(store) == store_bytes(whole.with_suffix(""))
    finally:
        os.kill(ranks[0].pid or 0, signal.SIGCONT)
    ranks[0].join(timeout=120)
    assert ranks[0].exitcode == 0
    assert store_bytes(store) == store_bytes(whole.with_suffix(""))


@long_form
def test_torchrun_restarts_its_ranks_after_one_was_killed(configure: Configure) -> None:
    whole = configure("whole", **MANY_SHARDS)
    dump(whole)
    config = configure(**MANY_SHARDS)
    store = config.with_suffix("")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", "2", "-m", "stage1_dump", "run", "--config-file", str(config),
    ]  # fmt: skip
    job = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not commits(store):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(_first_child(job.pid), signal.SIGKILL)
    assert job.wait(timeout=240) == 0
    assert store_bytes(store) == store_bytes(whole.with_suffix(""))


def _first_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0])
