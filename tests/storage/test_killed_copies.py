"""A copy that is killed at any moment leaves a store that the next run completes, and one that is
terminated leaves no claim either."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from storage import copy_cache, verify
from storage.claims import live_claims
from storage.copying import _Job
from storage.exclusive import METADATA
from storage.location import PARTIAL_SUFFIX, Location
from tests.storage.cases import contents, make_cache

FULL = os.environ.get("GID_FAULTS") == "full"  # as `make faults` has it

COPIER = """
import sys
from storage import copy_cache
import storage.exclusive
storage.exclusive._LEASE_SEC = 0.05
print("ready", flush=True)
sys.stdin.readline()
copy_cache(sys.argv[1], sys.argv[2], transfers=2)
"""

# The command, with copies of shards that last until they are told to stop.
SLOW_COPIER = """
import sys
from storage.__main__ import main
from storage.copying import _Job

def transfer(self, shard):
    print("at work", flush=True)
    self._stopped.wait()

_Job._transfer = transfer
sys.exit(main(["copy", *sys.argv[1:]]))
"""


def killed(source: Path, target: Path, after_sec: float) -> bool:
    """Copy in a process that is killed after some time; return whether it was at work still."""
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        [sys.executable, "-c", COPIER, str(source), str(target)], stdin=pipe, stdout=pipe, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.stdin.write("go\n")
    child.stdin.flush()
    time.sleep(after_sec)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return child.returncode == -signal.SIGKILL


def test_a_copy_killed_again_and_again_ends_up_like_its_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_cache(source, num_images=24, num_views=2)
    expected, rng = contents(source), random.Random(3)
    kills = rounds = 0
    kills_wanted = 60 if FULL else 3
    while kills < kills_wanted:
        target = tmp_path / f"copy{rounds}"
        rounds += 1
        while kills < kills_wanted and killed(source, target, rng.uniform(0.0, 0.2)):
            kills += 1
            check_after_kill(target, expected)
        copy_cache(source, target)
        assert contents(target) == expected
        assert verify(target).ok


def test_a_terminated_copy_gives_its_claim_back(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_cache(source)
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_COPIER, str(source), str(target), "--transfers", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "at work\n"
    assert [name for name, _ in live_claims(Location(target))] == [str(METADATA)]
    child.terminate()
    try:
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 128 + signal.SIGTERM
    assert errors.endswith("interrupted by SIGTERM\n") and "Traceback" not in errors
    assert not list(live_claims(Location(target)))


def test_a_signal_amid_the_submissions_stops_what_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[bool] = []

    class InterruptedPool(ThreadPoolExecutor):
        def submit(self, *args: Any, **options: Any) -> Any:
            if self._threads:  # the second time
                raise KeyboardInterrupt
            return super().submit(*args, **options)

    monkeypatch.setattr("storage.copying.ThreadPoolExecutor", InterruptedPool)
    monkeypatch.setattr(_Job, "_transfer", lambda job, _: stopped.append(job._stopped.wait(10)))
    make_cache(tmp_path / "source")
    with pytest.raises(KeyboardInterrupt):
        copy_cache(tmp_path / "source", tmp_path / "target")
    assert stopped == [True]


def check_after_kill(target: Path, expected: dict[str, bytes]) -> None:
    """What is committed is right, and nothing that is there is of another size or meaning."""
    if not (target / "zarr.json").exists():  # killed before there was a store
        return
    assert not any(problem.spoils for problem in verify(target).problems)
    for key in Location(target).sizes("commits"):
        assert key.endswith(PARTIAL_SUFFIX) or (target / key).read_bytes() == expected[key]
