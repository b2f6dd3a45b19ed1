"""Page-locked memory: how much there is of it, and what is said when there is no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from detectors import pinned
from detectors.command import run_command
from detectors.pinned import HostMemoryError, block_bytes, kept_bytes, naming_pinning, pinned_empty


@pytest.mark.parametrize(
    ("size", "block"), [(0, 0), (1, 1), (512, 512), (513, 1024), (3 * 800 * 1344, 1 << 22)]
)
def test_a_block_is_a_power_of_two(size: int, block: int) -> None:
    assert block_bytes(size) == block


def test_blocks_of_one_size_are_used_again_and_others_kept() -> None:
    large, small = [1000, 1000, 60], [500, 60]
    # Two of the large at once: 4 x 1,024 and 2 x 64; the small later: 2 x 512.
    assert kept_bytes([large, small, small, large, large], alive=2) == 4 * 1024 + 2 * 64 + 2 * 512
    assert kept_bytes([small], alive=2) == 512 + 64


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("CUDA error: out of memory")


def test_memory_that_cannot_be_page_locked_is_the_hosts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pinned.torch, "empty", fails)

    def command() -> int:
        pinned_empty((3, 1_000_000), torch.float32, "start fewer ranks")
        return 0

    assert run_command(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 17 MB more of host memory could not be page-locked")
    assert "not the GPU's, or `ulimit -l`); start fewer ranks" in line


def batches(message: str) -> Iterator[int]:
    yield 1
    raise RuntimeError(message)


def test_a_loader_that_cannot_page_lock_says_so() -> None:
    text = (
        "Caught RuntimeError in pin memory thread for device 0.\nOriginal Traceback (most recent "
        "call last):\n  File x\nRuntimeError: CUDA error: out of memory"
    )
    found = naming_pinning(batches(text), "lower DATALOADER.NUM_WORKERS")
    assert next(found) == 1
    with pytest.raises(HostMemoryError, match=r"could not be page-locked .* lower DATALOADER"):
        next(found)


@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried to allocate", "Caught ValueError in pin memory thread"]
)
def test_other_errors_of_a_loader_stay_what_they_are(message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        list(naming_pinning(batches(message), "lower DATALOADER.NUM_WORKERS"))
    assert list(naming_pinning(iter([1, 2]), "")) == [1, 2]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 1000, 100_000, 3_000_001])
def test_pytorch_takes_what_is_announced(size: int) -> None:
    before = _pinned_bytes()
    kept = pinned_empty((size,), torch.uint8, "")
    taken = _pinned_bytes() - before
    assert kept.is_pinned() and taken == block_bytes(size)


def _pinned_bytes() -> int:
    """Bytes of page-locked blocks in use."""
    torch.cuda.init()  # before it, there are no statistics
    return int(torch.cuda.host_memory_stats()["active_bytes.current"])
