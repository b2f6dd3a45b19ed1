"""What every test shares: one thread of arithmetic, and skips that say what is missing."""

import os
import shutil
import sys
from pathlib import Path

import pytest

# Before torch is imported: its pools cost more than they give on tiny models, and the number of
# threads moves the last bits of a sum.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests whose device or server is not there, with the reason."""
    for marker, missing in (("gpu", _missing_gpu), ("s3", _missing_s3)):
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = missing() if marked else None
        if reason:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _missing_s3() -> str | None:
    beside = Path(sys.executable).with_name("weed")
    if beside.exists() or shutil.which("weed"):
        return None
    return "no local S3 server: the program weed of the extra dev is not installed"
