"""How a job is started on every rank: under torchrun, as processes of our own, or in this one."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from configs.imports import import_modules
from storage.workers import end_with_parent

from .stopping import Interrupted, stop_signals

if TYPE_CHECKING:
    from detectron2.config import CfgNode

Job = Callable[["CfgNode", argparse.Namespace], Any]

_TIMEOUT = timedelta(minutes=30)
# What a rank gets to end by itself once another one has failed, seconds.
_GRACE_SEC = 15.0

# (processes in all, number of this one) as launchers that are no rendezvous name them.
_LAUNCHERS = {
    "srun": ("SLURM_NTASKS", "SLURM_PROCID"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpiexec": ("PMI_SIZE", "PMI_RANK"),
    "an MVAPICH launcher": ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    "a launcher": ("WORLD_SIZE", "RANK"),
}

# The oldest driver for each major version of CUDA (NVIDIA's release notes, minor version
# compatibility), and PyTorch builds of it.
_DRIVERS = {13: (580, "cu130"), 12: (525, "cu126 or cu128"), 11: (450, "cu118")}
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def launch_job(job: Job, cfg: CfgNode, args: argparse.Namespace) -> None:
    """Run `job(cfg, args)` on every rank: under torchrun as started, else as `--num-gpus` says.

    Raises:
        ValueError: the device is not there, another launcher started this process, or a rank
            failed or was killed.
    """
    _check_processes(args)
    check_device(cfg.MODEL.DEVICE)
    _check_ranks(cfg.MODEL.DEVICE, args)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join(cfg, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
        job(cfg, args)
        _leave()
        return
    _refuse_other_launchers(os.environ, job, args)
    if args.num_gpus * args.num_machines == 1:
        use_device(cfg.MODEL.DEVICE)
        job(cfg, args)
    else:
        _start_ranks(job, cfg, args)


def check_device(name: str) -> None:
    """See that `MODEL.DEVICE` is here.

    Raises:
        ValueError: it is a GPU that PyTorch does not see; says why, as far as can be seen.
    """
    if not name.startswith("cuda"):
        return
    if not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE is {name}, but {_why_no_cuda()}")
    count, number = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
    if number >= count:
        raise ValueError(f"MODEL.DEVICE is {name}, but PyTorch sees {count} GPUs, from cuda:0")


def use_device(name: str) -> None:
    """Make `MODEL.DEVICE`, which is here, this process's own.

    PyTorch saves the random state of the current GPU, and records events on it, unless told.
    """
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)


def _check_processes(args: argparse.Namespace) -> None:
    """See that the options that start processes fit each other and the launcher."""
    ours = {"--num-gpus": args.num_gpus, "--num-machines": args.num_machines}
    stated = [name for name, count in ours.items() if count > 1]
    if stated and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(f"{stated[0]}: this is already a rank of torchrun; leave the option out")
    if args.machine_rank >= args.num_machines:
        raise ValueError(
            f"--machine-rank {args.machine_rank}: expected less than --num-machines "
            f"{args.num_machines}; machines count from 0"
        )
    if args.num_machines > 1 and not re.fullmatch(r"tcp://[^/]+:\d{1,5}|file:///.+", args.dist_url):
        raise ValueError(
            f"--dist-url {args.dist_url}: expected tcp://host:port of the first machine, since "
            f"--num-machines is {args.num_machines}"
        )


def _check_ranks(name: str, args: argparse.Namespace) -> None:
    """See that every rank of this machine has a GPU of its own on `MODEL.DEVICE`, which is here."""
    if not name.startswith("cuda"):
        return
    option, local, total = "--num-gpus", args.num_gpus, args.num_gpus * args.num_machines
    if "TORCHELASTIC_RUN_ID" in os.environ:
        option, local = "torchrun --nproc-per-node", int(os.environ["LOCAL_WORLD_SIZE"])
        total = int(os.environ["WORLD_SIZE"])
    count = torch.cuda.device_count()
    if local > count:
        raise ValueError(
            f"{option} {local}: PyTorch sees {count} GPUs on this machine; start one process for "
            "each, or set MODEL.DEVICE cpu"
        )
    # Data parallelism takes GPU 0 for the first rank of each machine, and so on.
    if total > 1 and ":" in name and (local > 1 or int(name.partition(":")[2]) > 0):
        raise ValueError(
            f"MODEL.DEVICE is {name}, but {total} processes take the GPUs of their machines in "
            "order, from 0; set it to cuda (CUDA_VISIBLE_DEVICES says which GPUs they may use)"
        )


def _why_no_cuda() -> str:
    cpu = "or run on the CPU with: MODEL.DEVICE cpu"
    driver, build = _driver_version(), torch.version.cuda
    if build is None:
        return (
            f"this PyTorch ({torch.__version__}) is built without CUDA; install a build with it, "
            f"{cpu}"
        )
    if driver is None:
        return f"PyTorch sees no CUDA device here; install a driver, {cpu}"
    oldest = _DRIVERS.get(int(build.partition(".")[0]), (0, ""))[0]
    if int(driver.partition(".")[0]) >= oldest:
        return (
            f"PyTorch sees no CUDA device although there is a driver ({driver}); look at "
            "nvidia-smi, CUDA_VISIBLE_DEVICES and whether the container or the scheduler was asked "
            f"for GPUs, {cpu}"
        )
    fitting = [builds for need, builds in _DRIVERS.values() if int(driver.split(".")[0]) >= need]
    other = f"install a PyTorch build for it ({fitting[0]})" if fitting else "there is no build"
    return (
        f"the NVIDIA driver {driver} is too old for this PyTorch ({torch.__version__}), whose CUDA "
        f"{build} needs driver {oldest} or newer; update the driver, {other}, {cpu}"
    )


def _driver_version() -> str | None:
    """Version of the NVIDIA driver of this machine, such as 535.104.05; None without one."""
    text = _DRIVER_FILE.read_text() if _DRIVER_FILE.is_file() else ""
    if not text and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            text = subprocess.run(
                query, capture_output=True, text=True, timeout=30, check=False
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            return None
    found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text)
    return found.group() if found else None


def _refuse_other_launchers(
    environment: Mapping[str, str], job: Job, args: argparse.Namespace
) -> None:
    """Raises:

    ValueError: this process is one of several that do not know of each other; each would run the
        whole job in one folder. One for each of `--num-machines` is as it should be.
    """
    for launcher, (size_name, number_name) in _LAUNCHERS.items():
        count = _tasks(environment, size_name, number_name)
        if count > 1 and args.num_machines != count:
            raise ValueError(
                f"{launcher} started this as one of {count} processes ({size_name}), each of which "
                f"would run the whole job in one OUTPUT_DIR; start it as: "
                f"{_torchrun_command(environment, launcher, count, job, args)}"
            )


def _tasks(environment: Mapping[str, str], size_name: str, number_name: str) -> int:
    if number_name not in environment:
        return 1
    if size_name == "SLURM_NTASKS":
        step = {"SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"} & environment.keys()
        # The batch script itself is told of tasks that only srun would start.
        if "SLURM_JOB_ID" in environment and not step:
            return 1
        size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else size_name
    text = environment.get(size_name, "1")
    return int(text) if text.isdecimal() else 1


def _torchrun_command(
    environment: Mapping[str, str],
    launcher: str,
    count: int,
    job: Job,
    args: argparse.Namespace,
) -> str:
    package = job.__module__.partition(".")[0]
    rest = f"-m {package} {args.command} --config-file {args.config_file} ..."
    if launcher != "srun":
        return f"torchrun --nproc-per-node {count} {rest}"
    nodes = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES", "1")
    if not nodes.isdecimal() or int(nodes) < 2:
        return f"srun --ntasks 1 torchrun --nproc-per-node {count} {rest}"
    return (
        f"srun --ntasks-per-node 1 torchrun --nnodes {nodes} --nproc-per-node "
        f"{max(1, count // int(nodes))} --rdzv-id $SLURM_JOB_ID --rdzv-backend c10d "
        f"--rdzv-endpoint FIRST_NODE:29500 {rest}"
    )


def _start_ranks(job: Job, cfg: CfgNode, args: argparse.Namespace) -> None:
    """Start `--num-gpus` processes, and wait for them.

    Not detectron2's `launch`: it takes NCCL wherever there is a GPU, asked for or not.
    """
    url = args.dist_url
    if url == "auto":
        url = f"tcp://127.0.0.1:{_free_port()}"
    context = start_processes(
        _run_rank, (job, cfg, args, url), nprocs=args.num_gpus, join=False, start_method="spawn"
    )
    assert context is not None
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    numbers = stop_signals(cfg.SOLVER.PREEMPTION_SIGNAL)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        while not context.join(grace_period=_GRACE_SEC):
            pass
    except ProcessExitedException as error:
        ended_by = received[0] if received else _signal_of(error, numbers)
        if ended_by is not None:
            raise Interrupted(ended_by) from None
        raise ValueError(
            f"rank {error.error_index} on this machine ended without a message "
            f"({error.signal_name or f'exit code {error.exit_code}'}); if the system killed it, it "
            "may have been short of memory"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal_of(error: ProcessExitedException, numbers: list[signal.Signals]) -> int | None:
    """Which of the signals ended a rank, by itself or by the rank's own exit code."""
    code = error.exit_code
    return next((number for number in numbers if code in (-number, 128 + number)), None)


def _run_rank(local: int, job: Job, cfg: CfgNode, args: argparse.Namespace, url: str) -> None:
    rank, size = args.machine_rank * args.num_gpus + local, args.num_machines * args.num_gpus
    # PyTorch sends SIGINT then, which what a shell runs in the background ignores.
    end_with_parent(signal.SIGTERM)
    try:
        import_modules(cfg.IMPORTS)
        _join(cfg, local, args.num_gpus, init_method=url, rank=rank, world_size=size)
        job(cfg, args)
        _leave()
    except KeyboardInterrupt as error:
        # PyTorch would end this process as if all were well.
        sys.exit(128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT))


def _leave() -> None:
    """Wait until all ranks are done: gloo takes one that ends amid another's last step for a fault.

    Rank 0 ends last, since it has the store by which they tell.
    """
    if not dist.is_initialized():
        return
    rank, size = dist.get_rank(), dist.get_world_size()
    store = dist.distributed_c10d._get_default_store()
    for step in ("done", "gone"):
        store.set(f"{step}{rank}", "")
        if step == "done" or rank == 0:
            store.wait([f"{step}{other}" for other in range(size)], _TIMEOUT)


def _join(cfg: CfgNode, local: int, local_size: int, **world: Any) -> None:
    """Meet the other ranks: over NCCL if the model is on GPUs, each rank on its own, else gloo."""
    from detectron2.utils import comm

    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if on_gpu:
        use_device(cfg.MODEL.DEVICE if ":" in cfg.MODEL.DEVICE else f"cuda:{local}")
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_TIMEOUT, **world)
    comm.create_local_process_group(local_size)
    # As detectron2's launch: a rank that is late must not run into the timeout of the first step.
    comm.synchronize()


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
