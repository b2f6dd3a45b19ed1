"""Image workers that fail in one line: what they need is looked at first, and no wait is endless.

PyTorch's loader notices a worker that dies. It does not notice one that lives and loses a batch: a
batch is sent from a thread, through shared memory and file descriptors, and where either runs out
the thread prints a traceback, drops the batch, and the trainer waits for it for ever. Here the
error is sent in the batch's place.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from detectron2.config import CfgNode
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.utils import comm
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from configs.imports import import_modules
from storage.resources import exhausted

Batch = TypeVar("Batch")

SHARED_MEMORY = Path("/dev/shm")

# Exit code of a worker that can neither go on nor say so through its queue.
_LACKING = 72
# glibc's numbers for mallopt, and what they are set to: the most that it allows, and some images.
_KEPT_BLOCKS = {-3: 32 << 20, -1: 256 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
# Soft limits of 1024 open files are common, and batches of a few dozen tensors reach them.
_OPEN_FILES = 1 << 16


class WorkerError(OSError):
    """The image workers cannot go on; the message says what to change."""


class Watched(Generic[Batch]):
    """A loader whose workers are provided for, and whose failures are one line each.

    Attributes:
        loader: the loader itself.
    """

    def __init__(
        self, loader: Iterable[Batch], *, batch_bytes: int, imports: Sequence[str] = (),
        in_use: int = 2, ranks: int = 1, forked: bool = True,
    ) -> None:  # fmt: skip
        """Args:

        loader: PyTorch's, or one of detectron2's around it. Workers start as it says, if it does.
        batch_bytes: of the largest batch that a worker sends, in tensors.
        imports: the config's IMPORTS, for workers that are not forked.
        in_use: batches that were received and are still held: that of the step, and one before.
        ranks: processes on this machine that load as much.
        forked: whether workers may be forked from this process. Not where it, or they, use an
            object store, whose client has threads.
        """
        self.loader = loader
        inner = _innermost(loader)
        # Its truth would be its length, which it need not have.
        self._num_workers = 0 if inner is None else inner.num_workers
        self._held_bytes = 0
        if inner is not None and inner.num_workers:
            batches = inner.num_workers * (inner.prefetch_factor or 1) + in_use
            self._held_bytes = ranks * batches * batch_bytes
            if inner.multiprocessing_context is None:
                inner.multiprocessing_context = _start_method(inner.dataset, forked=forked)
            inner.worker_init_fn = _Guarded(inner.worker_init_fn, tuple(imports))

    def __len__(self) -> int:
        """Batches, where the loader knows."""
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        """Start the workers, at once.

        Raises:
            WorkerError: they would not have enough shared memory, or cannot be started.
        """
        if self._num_workers:
            require_shared_memory(self._held_bytes)
            _raise_limit_of_files()
            # What is left of an earlier loader, if it lies in a cycle of references, would be
            # collected in a forked worker, which waits there for workers that are not its own.
            gc.collect()
        with self._explained("cannot be started"), _own_sigchld_handler():
            if isinstance(self.loader, AspectRatioGroupedDataset):
                # Its iterator would start the loader within only for the first batch.
                self.loader.dataset = started = iter(self.loader.dataset)
                loaded = iter(self.loader)
            else:
                loaded = started = iter(self.loader)
        workers = getattr(started, "_workers", ())
        return _WatchedBatches(loaded, partial(self._explained, "failed", workers))

    @contextlib.contextmanager
    def _explained(self, what: str, workers: Sequence[BaseProcess] = ()) -> Iterator[None]:
        """Turn what torch says about workers into a `WorkerError`; leave other errors alone."""
        try:
            yield
        except Exception as error:
            if not self._num_workers:
                raise
            reason = _reason(error, self._held_bytes, workers)
            if not reason:
                raise
            raise WorkerError(f"the image workers {what}: {reason}") from None


def watch_stock_loader(loader: Iterable[Any], cfg: CfgNode, *, is_train: bool) -> Watched[Any]:
    """Watch one of detectron2's loaders, whose workers send images one by one.

    Args:
        loader: for training or for tests, of this config.
        cfg: a detector's config.
        is_train: which of the two.
    """
    shortest, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    in_use = 2
    if is_train:
        shortest, longest = max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
        # Batches are gathered of wide and of tall images, beside that of the step.
        in_use = 3 * cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    image_bytes = 3 * min(shortest or longest, longest) * longest
    return Watched(
        loader,
        batch_bytes=image_bytes,
        imports=cfg.IMPORTS,
        in_use=in_use,
        ranks=comm.get_local_size(),
    )


class _WatchedBatches(Iterator[Batch]):
    def __init__(
        self,
        loaded: Iterator[Batch],
        explained: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._loaded = loaded
        self._explained = explained

    def __next__(self) -> Batch:
        try:
            with self._explained():
                return next(self._loaded)
        except StopIteration:
            raise
        except BaseException:
            # The error's traceback holds the iterator in a cycle. Collected with it, its queues
            # would be closed before the workers are told to end, and each be waited for.
            end = getattr(self._loaded, "_shutdown_workers", None)
            if end is not None:
                end()
            raise


def _start_method(dataset: object, *, forked: bool) -> str | None:
    """How workers start that share the memory of PyTorch, detectron2 and whatever is imported.

    Each that imports them anew takes 7 s and 340 MB for it, as Python has it from 3.14 on.
    """
    if sys.platform != "linux":
        return None  # there nothing can be shared
    if forked:
        return "fork"
    # Workers are forked from a server, which imports this first; one that runs already does not.
    multiprocessing.set_forkserver_preload([type(dataset).__module__])
    return "forkserver"


@contextlib.contextmanager
def _own_sigchld_handler() -> Iterator[None]:
    """Undo what PyTorch does to SIGCHLD when workers start.

    Its handler raises the death of a worker wherever the main thread is, in mid-step too. Without
    it, the batch that the worker owes is waited for, and `_explained` tells what became of it.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before)


def require_shared_memory(held_bytes: int) -> None:
    """Refuse to start workers whose batches will not fit the shared memory.

    Args:
        held_bytes: what they hold ready at most.

    Raises:
        WorkerError: says how much is needed.
    """
    found = _shared_memory()
    if found is not None and found[0] < held_bytes:
        raise WorkerError(f"the image workers would not have enough: {_too_little(held_bytes)}")


def _shared_memory() -> tuple[int, int] | None:
    """Free and total bytes; None where the system does not say."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _too_little(held_bytes: int) -> str:
    free, total = _shared_memory() or (0, 0)
    size = math.ceil((total - free + held_bytes) / 2**20)
    return (
        f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB of shared memory are free at"
        f" {SHARED_MEMORY}, and they hold up to {held_bytes / 2**20:.0f} MiB; start the container"
        f" with --shm-size={size}m, or lower DATALOADER.NUM_WORKERS or the batch"
    )


def _raise_limit_of_files() -> None:
    """Open as many files as the system allows: each tensor under way is one."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _reason(error: Exception, held_bytes: int, workers: Sequence[BaseProcess]) -> str:
    """Say why workers cannot go on, and what to do; "" if the error is about something else."""
    text = str(error)
    # A worker that meets the end of it in writing dies of SIGBUS.
    died_of_it = any(one.exitcode == -signal.SIGBUS for one in workers)
    if died_of_it or ("shared memory" in text and "open files" not in text):
        return _too_little(held_bytes)
    # PyTorch tells of the exit code, or comes to see first that a worker is gone.
    if f"exit code {_LACKING}" in text or any(one.exitcode == _LACKING for one in workers):
        return "a worker ran out of what it said above"
    lacking = exhausted(error)
    if lacking:
        return lacking
    if isinstance(error, WorkerError):
        return text.rpartition(f"{WorkerError.__name__}: ")[2].strip()
    # The other one receives the batches of all of them where they go to a GPU.
    if text.startswith(("DataLoader worker", "Pin memory thread")):
        return _died(text.splitlines()[0])
    return _died(str(error) or "gone") if isinstance(error, ConnectionError | EOFError) else ""


def _died(how: str) -> str:
    return (
        f"one of them died ({how.rstrip('. ')}); it may have been short of memory: lower"
        " DATALOADER.NUM_WORKERS or the batch"
    )


def _innermost(loader: Any) -> DataLoader[Any] | None:
    """PyTorch's loader in a detectron2 loader; None where there is none."""
    while loader is not None and not isinstance(loader, DataLoader):
        loader = getattr(loader, "dataset", getattr(loader, "_dataset", None))
    return loader


def keep_freed_memory() -> None:
    """Let this process keep the blocks of a few megabytes that it frees, for its next image.

    glibc hands them back to the system at once, and each page of the next one is a fault: they took
    7% of an image's time. Where there is another C library, nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for key, size in _KEPT_BLOCKS.items():
            mallopt(key, size)


class _Guarded:
    """What a worker does first: see that nothing that fails in its threads fails in silence."""

    def __init__(self, then: Callable[[int], Any] | None, imports: tuple[str, ...] = ()) -> None:
        self._then = then
        self._imports = imports
        self._environment = dict(os.environ)

    def __call__(self, number: int) -> None:
        # A server that forks workers has the environment in which it was started, long ago maybe:
        # without the credentials of this store.
        os.environ.clear()
        os.environ.update(self._environment)
        queue: Any = multiprocessing.queues.Queue
        queue._on_queue_feeder_error = _send_in_its_place
        queue._start_thread = _start_or_end
        sys.excepthook = _end_if_lacking
        keep_freed_memory()
        import_modules(self._imports)
        if self._then is not None:
            self._then(number)


_START_THREAD: Any = multiprocessing.queues.Queue._start_thread  # type: ignore[attr-defined]


def _start_or_end(queue: Any) -> None:
    """Start the thread that sends batches, or end: nothing can be told without it."""
    try:
        _START_THREAD(queue)
    except RuntimeError as error:
        _end_if_lacking(type(error), error, None, always=True)


def _send_in_its_place(queue: Any, error: Exception, batch: Any) -> None:
    """Send an error instead of the batch that could not be sent."""
    if not isinstance(batch, tuple):  # it was packed, so the pipe itself is broken
        _end_if_lacking(type(error), error, None, always=True)
    said = WorkerError(f"{type(error).__name__}: {' '.join(str(error).split())}")
    where = "while it sent a batch"
    queue.put((batch[0], ExceptionWrapper((WorkerError, said, None), where=where)))


def _end_if_lacking(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None, *,
    always: bool = False,
) -> None:  # fmt: skip
    """End the worker where the thread that hands out its descriptors fails, else whoever asked that
    thread for one would wait for ever."""
    lacking = exhausted(error)
    if not (lacking or always):
        sys.__excepthook__(kind, error, trace)
        return
    os.write(2, f"error: an image worker: {lacking or error}\n".encode())
    os._exit(_LACKING)
