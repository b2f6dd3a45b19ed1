"""Arithmetic of a teacher's forward, the same wherever one runs: in a dump, live, and in checks.

PyTorch lets cuDNN use TF32 unless it is told not to: a float32 teacher would then lose 13 of its 23
bits of mantissa in every convolution, and a live teacher would differ from the cache of its own
dump. So it could by the algorithms that cuDNN takes, where they are timed or cannot be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Compute at one of `TeacherConfig.PRECISIONS`, whatever the process and its autocast do.

    TF32 is off except for `tf32`, where a GPU may round the factors of a product. cuDNN takes its
    default algorithms among the deterministic ones: timing them anew in each process could choose
    others.

    Args:
        precision: `float32`, `tf32`, `bfloat16` or `float16`.
        device: where the computation runs.

    Raises:
        ValueError: `tf32`, and the device is no GPU.
    """
    check_precision(precision, device)
    cudnn, allow_tf32 = torch.backends.cudnn, precision == "tf32"
    before = (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
    matmul_before = torch.get_float32_matmul_precision()
    half = _AUTOCAST_DTYPES.get(precision)
    try:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = allow_tf32, False, True
        torch.set_float32_matmul_precision("high" if allow_tf32 else "highest")
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
        torch.set_float32_matmul_precision(matmul_before)


def check_precision(precision: str, device: torch.device) -> None:
    """Raises:

    ValueError: the device does not have the precision.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(
            f"TEACHER.PRECISION tf32 needs a CUDA device, but the teacher runs on {device.type}; "
            "use float32"
        )
