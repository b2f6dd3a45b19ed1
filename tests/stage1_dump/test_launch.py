"""Ranks started on one machine, and the templates that start them on many."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stage1_dump import launch
from stage1_dump.__main__ import main
from stage1_dump.ranks import Rank, current_rank
from tests.stage1_dump.conftest import Configure
from tests.stage1_dump.helpers import dump, store_bytes

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["--config-file", "c.yaml", "TEACHER.BATCH", "4"]


class Ranks:
    """Stands for `subprocess.Popen`: each start of a rank ends with its next exit code."""

    def __init__(self, codes: dict[int, list[int]]) -> None:
        self.codes = codes
        self.started: list[tuple[list[str], dict[str, str]]] = []
        self.terminated: list[int] = []

    def __call__(self, command: list[str], env: dict[str, str], stdin: int) -> Any:
        self.started.append((command, env))
        return _Process(self, int(env["RANK"]))


class _Process:
    def __init__(self, ranks: Ranks, number: int) -> None:
        self._ranks, self._number = ranks, number

    def poll(self) -> int:
        return self._ranks.codes[self._number].pop(0)

    def terminate(self) -> None:
        self._ranks.terminated.append(self._number)

    def wait(self) -> int:
        return -signal.SIGTERM


@pytest.fixture(autouse=True)
def outside_a_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("VERSION: 2\nDATASETS: {TRAIN: [folder_train]}\n")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(launch, "_POLL_SEC", 0.0)


def test_num_gpus_starts_as_many_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = Ranks({0: [0], 1: [1]})
    monkeypatch.setattr(subprocess, "Popen", ranks)
    assert main(["run", "--num-gpus", "2", *ARGUMENTS]) == 1
    assert [command[-4:] for command, _ in ranks.started] == [ARGUMENTS, ARGUMENTS]
    numbered = [current_rank(env) for _, env in ranks.started]
    assert numbered == [Rank(number=n, world_size=2, local=n, gpu=n) for n in range(2)]
    monkeypatch.setenv("RANK", "0")
    assert main(["run", "--num-gpus", "2", *ARGUMENTS]) == 1
    assert "already a rank" in capsys.readouterr().err


def test_a_wrong_config_starts_no_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = Ranks({0: [0], 1: [0]})
    monkeypatch.setattr(subprocess, "Popen", ranks)
    assert main(["run", "--num-gpus", "2", *ARGUMENTS, "INPUT.CROP.ENABLED", "True"]) == 1
    assert ranks.started == []
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_rank_that_was_killed_is_started_again_and_one_that_failed_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = Ranks({0: [-signal.SIGKILL, -signal.SIGSEGV, 0], 1: [0]})
    monkeypatch.setattr(subprocess, "Popen", ranks)
    assert launch.run_ranks(2, ARGUMENTS, max_restarts=2) == 0
    assert [env["RANK"] for _, env in ranks.started] == ["0", "1", "0", "0"]
    ranks = Ranks({0: [-signal.SIGKILL] * 3})
    monkeypatch.setattr(subprocess, "Popen", ranks)
    assert launch.run_ranks(1, ARGUMENTS, max_restarts=2) == signal.SIGKILL
    ranks = Ranks({0: [1]})
    monkeypatch.setattr(subprocess, "Popen", ranks)
    assert launch.run_ranks(1, ARGUMENTS, max_restarts=2) == 1
    assert len(ranks.started) == 1


def test_a_terminated_launcher_terminates_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks({})
    monkeypatch.setattr(subprocess, "Popen", ranks)
    monkeypatch.setattr(_Process, "poll", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["run", "--num-gpus", "2", *ARGUMENTS]) == 128 + signal.SIGTERM
    assert ranks.terminated == [0, 1]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_dump_says_how_it_goes_on(
    number: signal.Signals,
    ranks: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("stage1_dump.dump.run", interrupt)
    monkeypatch.setattr("stage1_dump.launch.run_ranks", interrupt)
    assert main(["run", "--num-gpus", str(ranks), *ARGUMENTS]) == 128 + number
    said = "committed shards stay; run the same command again to go on"
    assert capsys.readouterr().err == f"interrupted by {number.name}; {said}\n"


def test_a_rank_that_cannot_start_leaves_no_other_running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = Ranks({})

    def start(command: list[str], env: dict[str, str], stdin: int) -> Any:
        if env["RANK"] == "2":
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return ranks(command, env, stdin)

    monkeypatch.setattr(subprocess, "Popen", start)
    assert main(["run", "--num-gpus", "4", *ARGUMENTS]) == 1
    assert "no thread or process can be started" in capsys.readouterr().err
    assert ranks.terminated == [0, 1]


LAUNCHER = """
import sys
from stage1_dump import launch
sys.executable = sys.argv[1]
launch.run_ranks(2, [])
"""
RANK = """#!{python}
import os, signal, sys, time
sys.path.insert(0, {root!r})
from stage1_dump.launch import end_with_launcher
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("ended", flush=True)))
end_with_launcher()
print("begun", flush=True)
time.sleep(60)
"""


def test_ranks_end_with_a_launcher_that_was_killed(tmp_path: Path) -> None:
    rank = tmp_path / "rank"
    rank.write_text(RANK.format(python=sys.executable, root=str(ROOT)))
    rank.chmod(0o755)
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(rank)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert launcher.stdout is not None
    assert [launcher.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
    launcher.kill()
    # To the end of what they write: none of them runs any more.
    assert launcher.communicate(timeout=30)[0] == "ended\n" * 2


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine of a Slurm array, where `srun` runs its command; the folder of its programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name, value in {
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_GPUS_ON_NODE": "2", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield programs


def _program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def test_the_slurm_script_runs_one_rank_for_each_gpu_of_its_machine(slurm: Path) -> None:
    _program(slurm / "srun", 'echo "$*"')
    command = ["bash", str(ROOT / "tools" / "dump_slurm.sh")]
    done = subprocess.run([*command, "c.yaml", "VIEWS.NUM", "2"], capture_output=True, text=True)
    expected = "python -m stage1_dump run --num-gpus 2 --config-file c.yaml VIEWS.NUM 2"
    assert done.stdout == expected + "\n"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "usage: sbatch" in done.stderr


def test_the_kubernetes_job_tells_its_pods_of_how_many_they_are() -> None:
    job = yaml.safe_load((ROOT / "tools" / "dump_kubernetes.yaml").read_text())["spec"]
    (container,) = job["template"]["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert job["completionMode"] == "Indexed"
    last = {"JOB_COMPLETION_INDEX": str(job["completions"] - 1), **variables}
    rank = current_rank(last)
    assert (rank.number, rank.world_size) == (job["completions"] - 1, job["completions"])


@pytest.mark.skipif(
    os.environ.get("GID_FAULTS") != "full", reason="a long form; GID_FAULTS=full runs it"
)
def test_the_slurm_script_dumps(reference: Path, configure: Configure, slurm: Path) -> None:
    _program(slurm / "srun", 'exec "$@"')
    config = configure(VIEWS={"NUM": 2})
    subprocess.run(["bash", str(ROOT / "tools" / "dump_slurm.sh"), str(config)], check=True)
    assert store_bytes(config.with_suffix("")) == store_bytes(reference)
    assert dump(config).records == 0
