"""Several ranks on one machine, one for each GPU, without a launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def run_ranks(count: int, arguments: Sequence[str]) -> int:
    """Run `python -m stage1_dump run` as `count` ranks and wait for all of them.

    The ranks need nothing of each other: one that fails leaves its shards to the rest.

    Args:
        count: processes.
        arguments: of the command `run`, without `--num-gpus`.

    Returns:
        The highest exit code.

    Raises:
        ValueError: this process is already a rank of torchrun or srun.
    """
    if "RANK" in os.environ:
        raise ValueError("--num-gpus: this is already a rank of a launcher; leave the option out")
    command = [sys.executable, "-m", "stage1_dump", "run", *arguments]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **_rank_variables(number, count)})
        for number in range(count)
    ]
    try:
        return max(abs(rank.wait()) for rank in ranks)
    finally:
        # Interrupted: the ranks give their claims back before they end.
        for rank in ranks:
            rank.terminate()
        for rank in ranks:
            rank.wait()


def _rank_variables(number: int, count: int) -> dict[str, str]:
    return {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count)}
