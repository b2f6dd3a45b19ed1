"""Image workers that run out of something, or are killed: one line, and nobody waits for ever."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from detectors import workers
from detectors.workers import Watched, WorkerError, require_shared_memory

FULL = os.environ.get("GID_FAULTS") == "full"  # as `make faults` has it
WAIT_SEC = 120 if FULL else 60
IMPORTED_BY = os.getpid()
in_full = pytest.mark.skipif(not FULL, reason="starts processes anew; a part of `make faults`")


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    def fail(*_: object) -> None:
        raise TimeoutError("this hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(WAIT_SEC)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Unsendable:
    """What torch raises when a tensor cannot be put into shared memory, and where it does."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        raise self._error


class Items(Dataset[Any]):
    """Gives numbers, but for one of them, of which it does something else."""

    def __init__(self, act: Callable[[], Any], at: int = 2) -> None:
        self._act = act
        self._at = at

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> Any:
        return self._act() if number == self._at else number


def batches_of(act: Callable[[], Any], num_workers: int = 2, **more: Any) -> Iterator[Any]:
    loader: Any = DataLoader(
        Items(act), batch_size=1, num_workers=num_workers, collate_fn=list, **more
    )
    return iter(Watched(loader, batch_bytes=1))


def raised(error: Exception) -> Any:
    raise error


SHARED = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(SHARED), r"of shared memory are free at /dev/shm.*--shm-size=\d+m"),
        (RuntimeError("unable to mmap 8 bytes: Cannot allocate memory (12)"), "out of memory"),
        (OSError(24, "Too many open files"), r"too many open files \(limit \d+\).*ulimit -n"),
        (ValueError("two\nlines"), "ValueError: two lines"),
    ],
)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_batch_that_cannot_be_sent_is_an_error_in_its_place(
    error: Exception, said: str, num_workers: int
) -> None:
    batches = batches_of(lambda: Unsendable(error), num_workers)
    assert [next(batches), next(batches)] == [[0], [1]]
    with pytest.raises(WorkerError, match=f"^the image workers failed: .*{said}") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("context", ["fork", pytest.param("forkserver", marks=in_full)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_is_killed_is_one_line(context: str, number: signal.Signals) -> None:
    batches = batches_of(Killed(number), multiprocessing_context=context)
    with pytest.raises(WorkerError, match=r"one of them died \(.*lower DATALOADER\.NUM") as caught:
        list(batches)
    assert "\n" not in str(caught.value)


def test_a_worker_without_free_descriptors_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def many_tensors() -> list[torch.Tensor]:
        here = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (here + 10, here + 10))
        return [torch.zeros(8) for _ in range(50)]

    with pytest.raises(WorkerError) as caught:
        list(batches_of(many_tensors, num_workers=1))
    # Whichever of its threads lacks one first: it sends the error, or says it and ends.
    said = str(caught.value)
    if said.endswith("a worker ran out of what it said above"):
        said = capfd.readouterr().err
    assert re.search(r"too many open files \(limit \d+\).*ulimit -n", said)


def test_a_worker_that_can_start_no_thread_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def without_threads(_: int) -> None:
        refuse: Any = lambda _: raised(RuntimeError("can't start new thread"))  # noqa: E731
        threading.Thread.start = refuse  # type: ignore[method-assign]

    with pytest.raises(WorkerError, match="a worker ran out of what it said above"):
        list(batches_of(lambda: 1, num_workers=1, worker_init_fn=without_threads))
    said = capfd.readouterr().err
    assert "error: an image worker: no thread or process" in said and "Traceback" not in said


@pytest.mark.parametrize("text", ["exited unexpectedly with exit code 72", "exited unexpectedly"])
def test_a_worker_that_said_what_it_lacks_did_not_merely_die(text: str) -> None:
    class Loaded(list[int]):
        _workers = (SimpleNamespace(exitcode=None), SimpleNamespace(exitcode=workers._LACKING))

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            raise RuntimeError(f"DataLoader worker (pid(s) 7) {text}")

    watched = Watched(Loaded(), batch_bytes=0)
    watched._num_workers = 1
    with pytest.raises(WorkerError, match="failed: a worker ran out of what it said above"):
        next(iter(watched))


@pytest.mark.parametrize("context", ["spawn", pytest.param("forkserver", marks=in_full)])
def test_a_worker_that_is_no_fork_imports_the_user_s_modules(
    context: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_registrations.py").write_text("")
    monkeypatch.chdir(tmp_path)
    loader: Any = DataLoader(
        Items(IsImported("my_registrations"), at=0), num_workers=1, collate_fn=list,
        multiprocessing_context=context,
    )  # fmt: skip
    assert next(iter(Watched(loader, batch_bytes=1, imports=("my_registrations",)))) == [True]


def test_workers_are_forked_whatever_this_python_does_by_itself() -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        assert [os.getpid()] in list(batches_of(os.getppid, num_workers=1))
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_workers_beside_an_object_store_are_forked_from_what_has_imported_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forkserver._forkserver._stop()  # type: ignore[attr-defined]

    def answer_of(act: Callable[[], Any]) -> Any:
        loader: Any = DataLoader(Items(act, at=0), num_workers=1, collate_fn=list)
        return next(iter(Watched(loader, batch_bytes=1, forked=False)))

    assert answer_of(this_module_is_of_the_parent) == [True]
    # That server runs by now. What it was started with is not what counts.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert answer_of(partial(os.getenv, "AWS_ENDPOINT_URL")) == ["http://127.0.0.1:1"]


def this_module_is_of_the_parent() -> bool:
    return os.getppid() == IMPORTED_BY != os.getpid()


class IsImported:
    """Whether a module is, in this process."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self) -> bool:
        return self._name in sys.modules


class Killed:
    """Ends its process."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __call__(self) -> None:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), self._number)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "failed: out of memory; use smaller batches or fewer workers"),
        (RuntimeError("can't start new thread"), "failed: no thread or process can be started"),
    ],
)
def test_what_a_worker_lacks_is_one_line(error: Exception, said: str) -> None:
    with pytest.raises(WorkerError, match=said) as caught:
        list(batches_of(lambda: raised(error)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "said", ["Pin memory thread exited unexpectedly", "DataLoader worker (pid 7) exited"]
)
def test_what_torch_says_of_its_threads_and_workers_is_one_line(
    said: str,
) -> None:
    class Broken(DataLoader[Any]):
        def __iter__(self) -> Any:
            return (raised(RuntimeError(said)) for _ in [0])

    loader: Any = Broken(Items(lambda: 0), num_workers=1)
    with pytest.raises(WorkerError, match=r"one of them died \(.*lower DATALOADER"):
        list(Watched(loader, batch_bytes=1))


def test_a_worker_that_dies_between_batches_is_told_where_its_next_one_is_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As in a process whose first workers these are: PyTorch sets its handler once.
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    batches: Any = batches_of(lambda: 0, num_workers=1)
    next(batches)
    (worker,) = batches._loaded._workers
    worker.kill()
    # PyTorch's handler would raise here, unless somebody had asked for the exit code before.
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(WorkerError, match=r"failed: one of them died \(DataLoader worker .*lower"):
        list(batches)
    signal.signal(signal.SIGCHLD, before)


def test_a_worker_that_dies_of_full_shared_memory_is_told_so() -> None:
    with pytest.raises(WorkerError, match=r"failed: \d+ of \d+ MiB of shared memory are free"):
        list(batches_of(Killed(signal.SIGBUS)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_of_the_data_stay_what_they_are(num_workers: int) -> None:
    with pytest.raises(ValueError, match="the image is damaged"):
        list(batches_of(lambda: raised(ValueError("the image is damaged")), num_workers))
    with pytest.raises(FileNotFoundError, match="no such image"):
        list(batches_of(lambda: raised(FileNotFoundError("no such image")), num_workers))


def test_workers_that_cannot_be_started_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: raised(BlockingIOError(11, "Try again")))
    with pytest.raises(WorkerError, match=r"cannot be started: no thread or process .*ulimit -u"):
        batches_of(lambda: 0)


def test_workers_start_and_draw_from_the_generator_at_once() -> None:
    torch.manual_seed(1)
    expected = torch.empty((), dtype=torch.int64).random_()
    after = torch.rand(())
    torch.manual_seed(1)
    batches_of(lambda: 0)  # what a resumed run restores comes after this draw
    assert torch.rand(()) == after and expected is not None


def small(free: int, total: int) -> Callable[[Any], SimpleNamespace]:
    return lambda _: SimpleNamespace(f_bavail=free, f_frsize=1 << 20, f_blocks=total)


def test_shared_memory_is_looked_at_before_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "statvfs", small(60, 64))
    require_shared_memory(60 << 20)
    with pytest.raises(WorkerError) as caught:
        require_shared_memory((60 << 20) + 1)
    assert str(caught.value) == (
        "the image workers would not have enough: 60 of 64 MiB of shared memory are free at"
        " /dev/shm, and they hold up to 60 MiB; start the container with --shm-size=65m, or lower"
        " DATALOADER.NUM_WORKERS or the batch"
    )
    loader: Any = DataLoader(Items(lambda: 0), num_workers=2, prefetch_factor=2)
    with pytest.raises(WorkerError, match="hold up to 72 MiB"):  # 4 ready, 2 in use, 12 MiB each
        iter(Watched(loader, batch_bytes=12 << 20))
    with pytest.raises(WorkerError, match="hold up to 144 MiB"):
        iter(Watched(loader, batch_bytes=12 << 20, ranks=2))
    alone: Any = DataLoader(Items(lambda: 0), num_workers=0)
    assert len(list(Watched(alone, batch_bytes=1 << 40))) == 8


def test_where_the_system_does_not_say_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SHARED_MEMORY", Path("/nowhere"))
    require_shared_memory(1 << 60)


LOADS = """
import resource, sys, torch
from torch.utils.data import DataLoader
from detectors import workers
from detectors.command import run_command

class Views(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, n): return [torch.zeros({size}) for _ in range({tensors})]

def main():
    {before}
    loader = DataLoader(Views(), batch_size=1, num_workers=2, collate_fn=list,
                        pin_memory=False)
    kept = [batch for batch in workers.Watched(loader, batch_bytes={batch_bytes})]
    return 0

if __name__ == "__main__":
    sys.exit(run_command(main))
"""


def run_script(command: list[str], **values: Any) -> subprocess.CompletedProcess[str]:
    script = LOADS.format(**values)
    return subprocess.run(
        [*command, sys.executable, "-c", script],
        capture_output=True, text=True, timeout=WAIT_SEC - 5, check=False,
    )  # fmt: skip


@in_full
@pytest.mark.parametrize("tensors", [20, 100])
@pytest.mark.parametrize("limit", [64, 90])
def test_too_few_file_descriptors_end_in_one_line(limit: int, tensors: int) -> None:
    before = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"
    done = run_script([], size=8, tensors=tensors, before=before, batch_bytes=1)
    assert done.returncode == 1, done
    assert done.stderr.splitlines()[-1].startswith("error: the image workers")
    assert "raise the limit with ulimit -n" in done.stderr
    assert "Traceback" not in done.stderr


@in_full
def test_the_soft_limit_of_descriptors_is_raised() -> None:
    before = "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))"
    done = run_script([], size=8, tensors=20, before=before, batch_bytes=1)
    assert (done.returncode, done.stderr) == (0, "")


@in_full
@pytest.mark.parametrize("batch_bytes", [1, 1 << 20])
def test_a_small_dev_shm_ends_in_one_line(batch_bytes: int) -> None:
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "-"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("cannot mount a small /dev/shm")
    start = time.monotonic()
    done = run_script(command, size=100_000, tensors=1, before="", batch_bytes=batch_bytes)
    assert done.returncode == 1, done
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: the image workers") and "--shm-size=" in line
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < WAIT_SEC


def faults_of_an_image(_: object = None) -> int:
    def image() -> list[np.ndarray]:
        return [np.ones((800, 1344, 3), np.uint8) for _ in range(3)]

    image()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    image()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="not glibc")
def test_a_worker_keeps_the_memory_of_one_image_for_the_next() -> None:
    with multiprocessing.get_context("fork").Pool(1, workers._Guarded(None), (0,)) as kept:
        (found,) = kept.map(faults_of_an_image, [None])
    assert found < 100  # of 2,400 pages
