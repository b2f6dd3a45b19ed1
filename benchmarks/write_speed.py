"""What a dump's writers cost beside its teacher: `CacheWriter.write` of full shards of codes.

ms of CPU  of the whole process, system time included: encoding, digests, putting, reading back, the
           commit. Without what Zstandard takes for the same records, which no writer can save
threads    the same shards written by two threads and by one, in turns; needs two idle cores. Beside
           it, what two processes make of them, which share nothing but the machine

Everything is written to a file system in memory, where there is one: a disk would bound both.

    python -m benchmarks.write_speed --json output/write_speed.json
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
from numcodecs import Zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from storage import CacheWriter
from storage.example import add_example
from storage.layout import ZSTD_LEVEL

from .records import codec_of, geometry_of
from .rows import Row, conclude
from .store_speed import SHARD_RECORDS, Arrays, make_arrays, make_writer, seconds_of

# Milliseconds of CPU per 800x1344 record: 1.5 per megabyte that is written.
CPU_LIMITS_MS = {"balanced": 12.0, "compact": 6.0}
THREADS_LIMIT = 1.8

_SHARDS = 6
_ROUNDS = 5
_PATIENCE_SEC = 300.0
_IN_MEMORY = "/dev/shm"
_ROOM_BYTES = 1 << 30  # more than any of the stores; containers may have little of it


def measure(output: Path) -> list[Row]:
    """Measure each preset; what is written is removed again."""
    rows = []
    for preset in CPU_LIMITS_MS:
        arrays = make_arrays(codec_of(preset))
        rows += [of(output, preset, arrays) for of in (cpu_row, threads_row, processes_row)]
    return rows


def cpu_row(folder: Path, preset: str, arrays: Arrays) -> Row:
    """Write shards one by one, and compress the same records in turns."""
    compressed = [
        arrays[one.name]
        for one in codec_of(preset).arrays(geometry_of(800, 1344))
        if one.compression
    ]
    spent = []
    with _new_writer(folder, preset) as writer:
        for shard in writer.missing():
            written = _cpu_seconds(partial(writer.write, shard, arrays))
            spent.append(written - _cpu_seconds(partial(_compress, compressed)))
    name = f"writing {preset} 800x1344 records, ms of CPU per record"
    value = statistics.median(spent) / SHARD_RECORDS * 1e3
    return Row(name=name, value=value, limit=CPU_LIMITS_MS[preset])


def _compress(arrays: Sequence[NDArray[np.uint8]]) -> None:
    codec = Zstd(level=ZSTD_LEVEL)
    for record in chain.from_iterable(arrays):
        codec.encode(record)


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def threads_row(folder: Path, preset: str, arrays: Arrays) -> Row:
    """Write the same shards by one thread and by two."""

    def seconds(num_threads: int) -> float:
        with _new_writer(folder, preset) as writer, ThreadPoolExecutor(num_threads) as pool:
            shards = writer.missing()
            return seconds_of(lambda: list(pool.map(partial(writer.write, arrays=arrays), shards)))

    name = f"writing {preset} records, two threads / one"
    return Row(name=name, value=_two_to_one(seconds), limit=THREADS_LIMIT, at_least=True)


def processes_row(folder: Path, preset: str, arrays: Arrays) -> Row:
    """Write as many shards by one process and by two, each to a store of its own."""
    # A copy of this process has the arrays already.
    fork = multiprocessing.get_context("fork")

    def write(number: int, begun: Barrier, ended: Barrier) -> None:
        try:
            with _new_writer(folder, preset) as writer:
                begun.wait()
                for shard in writer.missing()[:number]:
                    writer.write(shard, arrays)
                ended.wait()
        except BaseException:
            begun.abort()
            ended.abort()
            raise

    def seconds(num_processes: int) -> float:
        # Only writing is timed: neither starting a process nor beginning and removing its store.
        begun, ended = (fork.Barrier(num_processes + 1, timeout=_PATIENCE_SEC) for _ in range(2))
        share = (_SHARDS // num_processes, begun, ended)
        processes = [fork.Process(target=write, args=share) for _ in range(num_processes)]
        for process in processes:
            process.start()
        begun.wait()
        taken = seconds_of(ended.wait)
        for process in processes:
            process.join()
            if process.exitcode:
                raise RuntimeError(f"a process that writes ended with {process.exitcode}")
        return taken

    name = f"writing {preset} records, two processes / one"
    return Row(name=name, value=_two_to_one(seconds), limit=math.inf)


def _two_to_one(seconds: Callable[[int], float]) -> float:
    """How much faster two threads are than one, which take turns."""
    ratios = []
    for _ in range(_ROUNDS):
        alone, together = (seconds(number) for number in (1, 2))
        ratios.append(alone / together)
    return statistics.median(ratios)


@contextmanager
def _new_writer(folder: Path, preset: str) -> Iterator[CacheWriter]:
    """Begin a store that is removed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as store:
        yield make_writer(Path(store), preset, {}, _SHARDS * SHARD_RECORDS)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0 only if every row is within its limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.write_speed", description=__doc__)
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to write, if not to memory"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    add_example(parser, "--json output/write_speed.json")
    args = parser.parse_args(argv)
    return conclude(measure(args.output or _place()), args.json)


def _place() -> Path:
    if os.access(_IN_MEMORY, os.W_OK) and shutil.disk_usage(_IN_MEMORY).free > _ROOM_BYTES:
        return Path(_IN_MEMORY)
    return Path(tempfile.gettempdir())


if __name__ == "__main__":
    sys.exit(main())
