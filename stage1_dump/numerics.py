"""Numerics: everything besides weights and pixels that moves the last bits of a teacher's outputs.

They are set alike by every rank and recorded in the manifest, so that a store is the same byte for
byte however many ranks and interruptions it took, on one kind of machine with one set of libraries.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from configs.nodes import TeacherConfig
from detectors.arithmetic import check_precision
from detectors.versions import library_versions

# One thread a rank. More would change the order of additions, so that stores of machines with
# different core counts would differ; several ranks use several cores just as well.
INTRA_OP_THREADS = 1


@contextmanager
def fixed_numerics(teacher: TeacherConfig, device: torch.device) -> Iterator[dict[str, Any]]:
    """Set this process up for reproducible teacher outputs, and say how; undone at the end.

    The arithmetic itself, cuDNN's algorithms included, is set around each forward, see
    `detectors.arithmetic`.

    Args:
        teacher: precision and batch size.
        device: where the teacher runs.

    Yields:
        The section `numerics` of the manifest, JSON.

    Raises:
        ValueError: the device does not have the precision.
    """
    check_precision(teacher.precision, device)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(INTRA_OP_THREADS)
        yield _describe(teacher, device)
    finally:
        torch.set_num_threads(before)


def _describe(teacher: TeacherConfig, device: torch.device) -> dict[str, Any]:
    return {
        "precision": teacher.precision,
        "batch": teacher.batch,
        "intra_op_threads": INTRA_OP_THREADS,
        "tf32": teacher.precision == "tf32",
        "cudnn": {
            "benchmark": False,
            "deterministic": True,
            "version": torch.backends.cudnn.version() if device.type == "cuda" else None,
        },
        "device": device_kind(device),
        "libraries": library_versions(),
    }


def device_kind(device: torch.device) -> str:
    """Name the kind of machine that computes: the GPU's model, or the CPU's instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
