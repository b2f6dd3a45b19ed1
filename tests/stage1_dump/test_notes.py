"""Notes of ranks lie outside every check: nothing that may lie there stops a command."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load_config
from stage1_dump.__main__ import main
from stage1_dump.dump import run
from stage1_dump.status import read_status
from tests.stage1_dump.conftest import Configure

NOTE = {
    "rank": 0, "world_size": 1, "host": "a", "started": 5.0, "updated": 6.0, "shards": 1,
    "records": 3, "ended": False,
}  # fmt: skip
WRONG: list[dict[str, Any]] = [
    {"rank": "0"}, {"rank": -1}, {"rank": True}, {"rank": None}, {"world_size": [1]},
    {"world_size": 10**400}, {"host": 7}, {"host": "two\nlines"}, {"host": "x" * 1000},
    {"started": "now"}, {"started": -1e300}, {"started": 1e300}, {"updated": None},
    {"updated": 4.0}, {"shards": 1.5}, {"records": {}}, {"records": -1}, {"ended": 0}, {"more": 1},
]  # fmt: skip


@pytest.fixture
def store(reference: Path, tmp_path: Path) -> Path:
    """A copy without one shard, and without notes."""
    store = Path(shutil.copytree(reference, tmp_path / "cache"))
    shutil.rmtree(store / "log")
    (store / "log").mkdir()
    next((store / "commits").rglob("*.json")).unlink()
    return store


def test_status_leaves_out_notes_of_other_content(store: Path) -> None:
    log = store / "log"
    (log / "dump-1-rank0.json").write_text(json.dumps(NOTE))
    for number, wrong in enumerate(WRONG):
        (log / f"dump-2-wrong{number}.json").write_text(json.dumps({**NOTE, **wrong}))
    for number, content in enumerate((b"", b"[]", b"7", b"{", b"\xff", b"[" * 100_000, b"null")):
        (log / f"dump-3-odd{number}.json").write_bytes(content)
    status = read_status(str(store))
    assert status.active_ranks == 0 and len(status.silent_ranks) == 1
    assert status.rate == 3.0
    assert status.to_json() and str(status)


@pytest.mark.parametrize(
    "change",
    [
        {"started": 0, "records": 1},  # the slowest rate
        {"records": 1 << 40},
        {"updated": 1e11},  # a clock that was ahead
        {"updated": 0.0, "started": 0.0},
    ],
)
def test_status_shows_any_note_that_can_be_one(store: Path, change: dict[str, Any]) -> None:
    now = time.time()
    note = {**NOTE, "started": now - 10, "updated": now, **change}
    (store / "log/dump-1-rank0.json").write_text(json.dumps(note))
    status = read_status(str(store))
    assert str(status) and status.to_json()
    assert status.active_ranks == (note["updated"] == now)


@pytest.mark.parametrize(
    ("runs", "silent"),
    [
        ("a 900-500, b 800-0", ["a"]),  # one command on two machines
        ("a 900-500, a 800-0", ["a"]),  # and on two GPUs of one
        ("a 900-500, b 800-400, c 700-300", ["a", "b", "c"]),
        ("a 900-500, b 800-400, c 100-90 ended", ["b"]),
        ("a 900-500, b 800-400, b 300-0", ["a"]),
        ("a 900-500, b 400-300, c 200-0", []),  # one rank, started again elsewhere
    ],
)
def test_status_shows_silent_ranks_until_each_is_started_again(
    store: Path, runs: str, silent: list[str]
) -> None:
    """Runs: the host, how many seconds ago it started and was last heard of."""
    now = time.time()
    for number, one in enumerate(runs.split(", ")):
        host, times, *ended = one.split()
        started, updated = (now - int(ago) for ago in times.split("-"))
        note = {"host": host, "started": started, "updated": updated, "ended": bool(ended)}
        (store / f"log/dump-{number}-rank0.json").write_text(json.dumps({**NOTE, **note}))
    found = read_status(str(store)).silent_ranks
    assert [line.split(" on ")[1].split(",")[0] for line in found] == silent


def test_things_that_are_no_notes_stop_neither_status_nor_a_dump(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(str(configure()))
    log = Path(config.CACHE.LOCATION) / "log"
    log.mkdir(parents=True)
    os.mkfifo(log / "annotations.json")
    (log / "config.json").mkdir()
    (log / "dump-1-rank0.json").symlink_to(log / "dump-1-rank0.json")
    (log / "dump-2-räng.json").write_bytes(b"{}")
    with (log / "dump-3-rank0.json").open("wb") as file:
        file.truncate(1 << 40)
    assert run(config).records == 10
    assert main(["status", config.CACHE.LOCATION]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_log_that_is_no_folder_stops_no_dump(configure: Configure) -> None:
    config = load_config(str(configure()))
    store = Path(config.CACHE.LOCATION)
    store.mkdir()
    (store / "log").write_bytes(b"?")
    assert run(config).records == 10
    assert read_status(str(store)).complete
