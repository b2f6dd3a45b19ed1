"""What several test modules of the dump share."""

import subprocess
import sys
from pathlib import Path

from configs.loader import load_config
from stage1_dump.dump import DumpReport, run

REPOSITORY = Path(__file__).parents[2]
# Times, hosts and who works on what are outside every comparison.
_NOT_COMPARED = {"log", "claims"}


def dump(config_file: Path) -> DumpReport:
    """Dump in this process."""
    return run(load_config(str(config_file)))


def start(code: str, *arguments: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
    """Start a Python process that runs `code`; its output is one stream."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def store_bytes(store: Path) -> dict[str, bytes]:
    """Every compared object of a store by its key."""
    keys = {path: path.relative_to(store).as_posix() for path in store.rglob("*")}
    return {
        key: path.read_bytes()
        for path, key in keys.items()
        if path.is_file() and key.partition("/")[0] not in _NOT_COMPARED
    }
