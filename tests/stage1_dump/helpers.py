"""What several test modules of the dump share."""

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from configs.loader import load_config
from stage1_dump.__main__ import main
from stage1_dump.dump import DumpReport, run

# Times, hosts and who works on what are outside every comparison.
_NOT_COMPARED = {"log", "claims"}


def dump(config_file: Path) -> DumpReport:
    """Dump in this process."""
    return run(load_config(str(config_file)))


def start_rank(config_file: Path, rank: int = 0, world_size: int = 1) -> BaseProcess:
    """Dump as the command does, in a process of its own.

    Forked: a fresh process would spend most of the test's time importing detectron2.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_run_rank, args=(str(config_file), rank, world_size)
    )
    process.start()
    return process


def _run_rank(config_file: str, rank: int, world_size: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    sys.exit(main(["run", "--config-file", config_file]))


def store_bytes(store: Path) -> dict[str, bytes]:
    """Every compared object of a store by its key."""
    keys = {path: path.relative_to(store).as_posix() for path in store.rglob("*")}
    return {
        key: path.read_bytes()
        for path, key in keys.items()
        if path.is_file() and key.partition("/")[0] not in _NOT_COMPARED
    }
