"""Several ranks on one machine, one for each GPU, without a launcher."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from storage.workers import end_after

logger = logging.getLogger(__name__)

_POLL_SEC = 0.2
# Tells a rank that its standard input is a pipe which says when its launcher has ended.
_LAUNCHED = "STAGE1_DUMP_LAUNCHED"


def run_ranks(count: int, arguments: Sequence[str], *, max_restarts: int = 0) -> int:
    """Run `python -m stage1_dump run` as `count` ranks and wait for all of them.

    The ranks need nothing of each other: one that fails leaves its shards to the rest. One that
    was killed (by the system, when memory is short) is started again; one that ended by itself has
    said why, and would say it again.

    Args:
        count: processes.
        arguments: of the command `run`, without `--num-gpus`.
        max_restarts: how often each rank is started again.

    Returns:
        The highest exit code.

    Raises:
        ValueError: this process is already a rank of torchrun.
        OSError: a rank cannot be started; the others were ended.
    """
    if "RANK" in os.environ:
        raise ValueError("--num-gpus: this is already a rank of a launcher; leave the option out")
    running: dict[int, subprocess.Popen[bytes]] = {}
    restarts = dict.fromkeys(range(count), 0)
    codes = []
    try:
        for number in range(count):
            running[number] = _start(number, count, arguments)
        while running:
            time.sleep(_POLL_SEC)
            for number, rank in list(running.items()):
                code = rank.poll()
                if code is None:
                    continue
                if code < 0 and restarts[number] < max_restarts:
                    restarts[number] += 1
                    logger.warning(
                        "rank %d was killed (%s); started again, %d of %d times",
                        number, signal.Signals(-code).name, restarts[number], max_restarts,
                    )  # fmt: skip
                    running[number] = _start(number, count, arguments)
                else:
                    codes.append(abs(code))
                    del running[number]
    finally:
        # Interrupted, or one could not start: the ranks give their claims back before they end.
        for rank in running.values():
            rank.terminate()
        for rank in running.values():
            rank.wait()
    return max(codes)


def _start(number: int, count: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    variables = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count)}
    variables[_LAUNCHED] = "1"
    command = [sys.executable, "-m", "stage1_dump", "run", *arguments]
    # Nothing is ever written to it: the system closes it when this process ends, however it does.
    return subprocess.Popen(command, env={**os.environ, **variables}, stdin=subprocess.PIPE)


def end_with_launcher() -> None:
    """Let a rank of `run_ranks` end, as by SIGTERM, once that process is gone.

    One that was killed tells nobody to end.
    """
    if os.environ.pop(_LAUNCHED, "") == "1":
        end_after(lambda: os.read(0, 1), signal.SIGTERM)
