"""Who may start a job, on which device, and over what the ranks meet."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectron2.config import CfgNode

from detectors import launching
from detectors.launching import check_device, launch_job

# As a launcher of eight tasks on two nodes sets them for the sixth.
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_PROCID": "5"}
TORCHRUN = (
    "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
)  # fmt: skip
TWO_MACHINES = {"num_machines": 2, "dist_url": "tcp://first:29500"}


def config(device: str = "cpu", imports: tuple[str, ...] = ()) -> CfgNode:
    return CfgNode(
        {"IMPORTS": imports, "MODEL": {"DEVICE": device}, "SOLVER": {"PREEMPTION_SIGNAL": ""}}
    )


def arguments(**changes: Any) -> argparse.Namespace:
    stated = {
        "num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto",
        "command": "train", "config_file": "c.yaml",
    }  # fmt: skip
    return argparse.Namespace(**stated | changes)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the variables of a launcher in a process that has none."""
    names = {name for pair in launching._LAUNCHERS.values() for name in pair} | {*SRUN, *TORCHRUN}
    for name in names:
        monkeypatch.delenv(name, raising=False)

    def state(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return state


@pytest.mark.parametrize(
    ("variables", "launcher", "command"),
    [
        (
            SRUN | {"SLURM_STEP_NUM_NODES": "2"}, "srun",
            "srun --ntasks-per-node 1 torchrun --nnodes 2 --nproc-per-node 4 ",
        ),
        (SRUN, "srun", "srun --ntasks 1 torchrun --nproc-per-node 8 "),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "srun", "torchrun --nproc-per-node 2 "),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "mpirun",
            "torchrun --nproc-per-node 4 ",
        ),
        ({"PMI_SIZE": "3", "PMI_RANK": "2"}, "mpiexec", "torchrun --nproc-per-node 3 "),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "a launcher", "torchrun --nproc-per-node 2 "),
    ],
)  # fmt: skip
def test_a_launcher_that_makes_no_ranks_is_refused_with_the_command_to_use(
    environment: Any, variables: dict[str, str], launcher: str, command: str
) -> None:
    environment(variables)
    ran = []
    with pytest.raises(ValueError) as caught:
        launch_job(lambda *_: ran.append(1), config(), arguments())
    message = str(caught.value)
    assert message.startswith(f"{launcher} started this as one of ") and not ran
    assert f"{command}" in message and "train --config-file c.yaml" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("variables", "changes"),
    [
        ({}, {}),
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {}),
        # The batch script itself: only srun would start its eight tasks.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, {}),
        # A step of one task in a job of eight, such as an interactive shell.
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, {}),
    ],
)
def test_one_process_is_run_whatever_the_scheduler(
    environment: Any, variables: dict[str, str], changes: dict[str, Any]
) -> None:
    environment(variables)
    ran = []
    launch_job(lambda *_: ran.append(1), config(), arguments(**changes))
    assert ran == [1]


@pytest.mark.parametrize(("device", "chosen"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_a_gpu_that_is_named_is_the_process_s_own(
    environment: Any, monkeypatch: pytest.MonkeyPatch, device: str, chosen: list[str]
) -> None:
    environment({})
    used: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    launch_job(lambda *_: None, config(device), arguments())
    assert used == chosen


def test_a_task_for_each_machine_is_what_num_machines_means(
    environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment({**SRUN, "SLURM_NTASKS": "2", "SLURM_PROCID": "1"})
    started: list[Any] = []
    monkeypatch.setattr(launching, "_start_ranks", lambda *_: started.append(1))
    launch_job(lambda *_: None, config(), arguments(machine_rank=1, num_gpus=4, **TWO_MACHINES))
    assert started == [1]
    with pytest.raises(ValueError, match="one of 2 processes"):
        launch_job(lambda *_: None, config(), arguments(num_gpus=2))


@pytest.mark.parametrize(
    ("device", "backend", "chosen"), [("cpu", "gloo", []), ("cuda", "nccl", ["cuda:1"])]
)
def test_ranks_meet_over_what_the_device_needs_not_over_what_is_there(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str, chosen: list[str]
) -> None:
    from detectron2.utils import comm

    met: list[Any] = []
    devices: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(
        launching.dist, "init_process_group", lambda *args, **kw: met.append((args, kw["rank"]))
    )
    monkeypatch.setattr(comm, "create_local_process_group", lambda size: met.append(size))
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    args = arguments(num_gpus=2, num_machines=2, machine_rank=1)
    launching._run_rank(1, lambda *_: met.append("ran"), config(device), args, "tcp://x:1")
    assert met == [((backend,), 3), 2, "ran"]
    assert devices == chosen


def test_a_rank_imports_the_user_s_modules_before_anything_else() -> None:
    with pytest.raises(ValueError, match=r"IMPORTS: my_gone: .* No module named 'my_gone'"):
        launching._run_rank(0, lambda *_: None, config("cpu", ("my_gone",)), arguments(), "tcp://x")


def torchrun(local_size: int, size: int) -> dict[str, str]:
    """What torchrun sets for its first process on a machine."""
    values = ("x", "0", str(size), "0", str(local_size))
    return dict(zip(TORCHRUN, values, strict=True))


@pytest.mark.parametrize(
    ("device", "size", "chosen"),
    [
        ("cuda:1", 1, ["cuda:1"]), ("cuda:0", 2, ["cuda:0"]), ("cuda", 2, ["cuda:0"]),
        ("cpu", 1, []),
    ],
)  # fmt: skip
def test_the_one_rank_of_a_machine_takes_the_gpu_that_is_named(
    environment: Any, monkeypatch: pytest.MonkeyPatch, device: str, size: int, chosen: list[str]
) -> None:
    from detectron2.utils import comm

    environment(torchrun(1, size))
    used: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(launching.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(comm, "create_local_process_group", lambda _: None)
    launch_job(lambda *_: used.append("ran"), config(device), arguments())
    assert used == [*chosen, "ran"]


@pytest.mark.parametrize(
    ("device", "variables", "changes", "expected"),
    [
        ("cuda", {}, {"num_gpus": 3}, "--num-gpus 3: PyTorch sees 2 GPUs on this machine"),
        ("cuda", torchrun(3, 3), {}, "torchrun --nproc-per-node 3: PyTorch sees 2 GPUs"),
        ("cuda:1", {}, {"num_gpus": 2}, "cuda:1, but 2 processes take .* from 0; set it to cuda"),
        ("cuda:1", {}, TWO_MACHINES, "cuda:1, but 2 processes take"),
        ("cuda:1", torchrun(2, 2), {}, "cuda:1, but 2 processes take"),
        ("cuda:1", torchrun(1, 4), {}, "cuda:1, but 4 processes take"),
    ],
)
def test_ranks_without_a_gpu_of_their_own_are_refused(
    environment: Any,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    variables: dict[str, str],
    changes: dict[str, Any],
    expected: str,
) -> None:
    environment(variables)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=expected):
        launch_job(lambda *_: None, config(device), arguments(**changes))


def dies(cfg: CfgNode, args: argparse.Namespace) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_was_killed_is_one_line(environment: Any) -> None:
    with pytest.raises(ValueError, match=r"rank \d on this machine .*SIGKILL.*short of memory"):
        launch_job(dies, config(), arguments(num_gpus=2))


# As a shell starts what it runs in the background.
_LAUNCHER = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from tests.detectors.test_launching import arguments, config, launch_job, stays
launch_job(stays, config(), arguments(num_gpus=2))
"""


def stays(cfg: CfgNode, args: argparse.Namespace) -> None:
    os.write(1, f"{os.getpid()}\n".encode())  # at once, beside the other rank's
    time.sleep(600)


def test_ranks_end_with_a_launcher_that_is_killed() -> None:
    variables = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    launcher = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER], env=variables, stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    ranks = [int(launcher.stdout.readline()) for _ in range(2)]
    launcher.kill()
    try:
        launcher.communicate(timeout=60)  # the pipe ends with the last process that has it
    finally:
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)


def ends_late(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Rank 0 is done at once; what it saw of the other at its end lies beside the config file."""
    done = Path(args.config_file)
    if dist.get_rank():
        time.sleep(1)
        done.touch()
    else:
        seen = done.with_name("seen")
        Finalize(None, lambda: seen.write_text(str(done.exists())), exitpriority=0)


def test_ranks_end_together(environment: Any, tmp_path: Path) -> None:
    launch_job(ends_late, config(), arguments(num_gpus=2, config_file=str(tmp_path / "done")))
    assert (tmp_path / "seen").read_text() == "True"


@pytest.mark.parametrize(
    ("torch_cuda", "driver", "expected"),
    [
        ("13.0", None, "PyTorch sees no CUDA device here; install a driver"),
        ("13.0", "535.104.05", "driver 535.104.05 is too old .*needs driver 580 or newer.*cu126"),
        ("13.0", "470.82", "driver 470.82 is too old .*build for it .cu118."),
        ("12.6", "470.82", "CUDA 12.6 needs driver 525 or newer.*cu118"),
        ("12.6", "390.157", "too old .*there is no build"),
        ("12.6", "580.65.06", "although there is a driver .580.65.06.; look at .*CUDA_VISIBLE"),
        (None, "580.65.06", "is built without CUDA; install a build with it"),
    ],
)
def test_a_gpu_that_is_not_there_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    torch_cuda: str | None,
    driver: str | None,
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    stated = tmp_path / "version"
    if driver:
        stated.write_text(
            f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Sat Aug  2\n"
            "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
        )
    monkeypatch.setattr(launching, "_DRIVER_FILE", stated)
    monkeypatch.setattr(launching.shutil, "which", lambda _: None)
    with pytest.raises(ValueError, match=f"MODEL.DEVICE is cuda:1, but .*{expected}") as caught:
        check_device("cuda:1")
    assert "MODEL.DEVICE cpu" in str(caught.value)


def test_the_driver_is_asked_for_its_version_where_no_file_tells_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 535.104.05\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(launching, "_DRIVER_FILE", tmp_path / "nothing")
    assert launching._driver_version() == "535.104.05"


def test_the_cpu_needs_no_driver() -> None:
    check_device("cpu")
