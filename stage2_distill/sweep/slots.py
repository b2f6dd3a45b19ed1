"""Where runs are trained: one slot for each GPU, or as many as wanted on a CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

from detectors.launching import check_device


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place for one run at a time.

    Attributes:
        name: for messages.
        environment: variables that keep a run within it.
    """

    name: str
    environment: Mapping[str, str]


def find_slots(cfg: CfgNode, jobs: int | None) -> list[Slot]:
    """The slots of this machine.

    Args:
        cfg: of any run; MODEL.DEVICE is the same in all of them.
        jobs: how many at most; None: all GPUs, or one on a CPU.

    Raises:
        ValueError: the device is not there, or there are not so many.
    """
    device = cfg.MODEL.DEVICE
    check_device(device)
    if not device.startswith("cuda"):
        return _of_cpu(jobs or 1)
    if ":" in device:
        raise ValueError(
            f"MODEL.DEVICE is {device}, but a sweep gives each run a GPU of its own; set it to "
            "cuda (CUDA_VISIBLE_DEVICES says which GPUs it may use)"
        )
    found = _visible_gpus()
    if jobs is not None and jobs > len(found):
        raise ValueError(f"--jobs {jobs}: expected at most the {len(found)} GPUs, one for each run")
    return [
        Slot(name=f"GPU {gpu}", environment={"CUDA_VISIBLE_DEVICES": gpu}) for gpu in found[:jobs]
    ]


def _visible_gpus() -> list[str]:
    """Their names as CUDA_VISIBLE_DEVICES has them."""
    count = torch.cuda.device_count()
    stated = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in stated.split(",")] if stated else map(str, range(count))
    return list(names)[:count]


def _of_cpu(jobs: int) -> list[Slot]:
    # Threads of several runs on the same cores would wait for each other.
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    own = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
    return [Slot(name=f"job {number}", environment=own) for number in range(1, jobs + 1)]
