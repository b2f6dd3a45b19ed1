"""Tables of kept figures: what a command writes is all that a mark on a page needs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy
from benchmarks.accuracy import Accuracy
from benchmarks.rows import Row, write_json
from benchmarks.tables import RESULTS, written
from detectors.origin import shown_command
from stage2_distill.sweep.statistics import paired_difference

MACHINE = {"cpu": "CPU 1", "cpus": 2, "torch": "2.11", "torchvision": "0.26", "python": "3.12"}
STUDENTS = {"ground truth": {1: 30.0, 2: 32.0}, "live": {1: 40.0, 2: 41.0},
            "balanced": {1: 39.0, 2: 43.0}}  # fmt: skip


def table(folder: Path, mark: str) -> list[str]:
    """The lines of a table on a page."""
    text = written(f"<!-- table {mark} -->\n<!-- end -->\n", folder)
    return text.splitlines()[1:-1]


def keep(folder: Path, name: str, content: dict[str, Any]) -> None:
    origin = {"machine": MACHINE, "date": "2026-01-02", "command": "python -m storage"}
    (folder / name).write_text(json.dumps({**origin, **content}))


def of_students(students: dict[str, dict[int, float]]) -> dict[str, Any]:
    return Accuracy(teacher=50.0, students=students).to_json([])


def test_no_kept_file_names_a_folder_of_a_machine() -> None:
    kept = list(RESULTS.glob("*.json"))
    assert kept
    for path in kept:
        found = re.findall(r'["\s=]/\w[^"\s]*', path.read_text())
        assert not found, f"{path.name}: write these as others have them: {found}"


def test_what_the_command_of_accuracy_writes_is_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "cells"
    monkeypatch.setattr(accuracy, "check_data", lambda folder: None)
    monkeypatch.setattr(accuracy, "prepare", lambda output, folder, *_: Folder(folder))
    found = Accuracy(teacher=50.0, students=STUDENTS)
    monkeypatch.setattr(accuracy, "measure", lambda *_, **__: found)
    accuracy.main(["--family", "fcos", "--photographs", str(data), "--json", str(tmp_path / "a")])
    told, _, *lines = table(tmp_path, "accuracy a:cells")
    assert re.search(r", \d+ CPU cores; PyTorch .*; \d{4}-\d\d-\d\d; `python ", told)
    over = "over ground truth alone, 95% interval | over the live teacher, 95% interval"
    assert lines == [
        f"| FCOS | seed 1 | seed 2 | mean | {over} |",
        "|---|---|---|---|---|---|",
        "| teacher |  |  | 50.0 |  |  |",
        "| student, ground truth alone | 30.0 | 32.0 | 31.0 |  |  |",
        "| student, teacher live in every step | 40.0 | 41.0 | 40.5 | +9.5 (+3.1 to +15.9) |  |",
        "| student, cache in preset `balanced` | 39.0 | 43.0 | 41.0 | +10.0 (-2.7 to +22.7) |"
        " +0.5 (-18.6 to +19.6) |",
    ]
    with pytest.raises(ValueError, match="one of its sets behind a colon: a:synthetic, a:cells"):
        table(tmp_path, "accuracy a")


class Folder:
    """What `main` asks of a job."""

    def __init__(self, data: Path | None) -> None:
        self.folder = data or Path("synthetic")


def test_one_set_needs_no_name_and_levels_are_told(tmp_path: Path) -> None:
    students = {"ground truth": {1: 30.0}, "compact p3 p4": {1: 31.0}}
    keep(tmp_path, "a.json", {"family": "retinanet", "sets": {"one": of_students(students)}})
    assert table(tmp_path, "accuracy a.json")[-1] == (
        "| student, cache in preset `compact`, levels p3 p4 | 31.0 | 31.0 | +1.0 |"
    )


def test_means_have_a_column_for_each_set(tmp_path: Path) -> None:
    sets = {"one": of_students(STUDENTS), "two": {**of_students(STUDENTS), "title": "photographs"}}
    keep(tmp_path, "a.json", {"family": "fcos", "sets": sets})
    lines = table(tmp_path, "means a.json:one a.json:two")
    assert lines[0] == "|  | one set | photographs |"
    assert lines[-1] == "| student, cache in preset `balanced` | 41.0 | 41.0 |"


def test_rows_of_a_benchmark_are_two_tables(tmp_path: Path) -> None:
    subject = "fcos, synthetic, balanced, gid"
    rows = [
        Row(name="step, cache / live", value=1.3, limit=1.15),
        Row(name="rate", value=2000.0, limit=float("inf")),
        Row(name=f"{subject}: GIs matched", value=0.98, limit=0.97, at_least=True),
        Row(name=f"{subject}: error of a loss", value=0.02, limit=0.01),
    ]
    write_json(rows, tmp_path / "rows.json")
    told, _, *lines = table(tmp_path, "limits rows.json")
    assert " CPU cores; " in told
    assert lines[2:] == ["| step, cache / live | 1.3 | 1.15 | not reached |",
                         "| rate | 2,000 |  |  |"]  # fmt: skip
    *_, line = table(tmp_path, "fidelity rows.json")
    assert line == f"| {subject} | 0.980 (0.97) | 2.00% (1%), not reached |  |"


def test_figures_entered_by_hand_say_so(tmp_path: Path) -> None:
    row = {"name": "time, s", "value": [1.0, 2.5], "limit": 2, "at_least": False, "reached": False}
    keep(tmp_path, "a.json", {"machine": "a machine", "entered": "by hand", "rows": [row]})
    lines = table(tmp_path, "limits a.json")
    assert lines[0] == "a machine; 2026-01-02; `python -m storage`. Entered by hand."
    assert lines[-1] == "| time, s | 1 to 2.5 | 2 | not reached |"


def sweep_of(seeds: int) -> dict[str, Any]:
    first = {seed: 30.0 + seed for seed in range(1, seeds + 1)}
    rows = {}
    for name, more in (("ground truth", 0), ("gid", 5)):
        ap = {seed: value + more * seed for seed, value in first.items()}
        apart = paired_difference(ap, first) if more else None
        result = {"ap": ap, "mean": sum(ap.values()) / seeds, "means": {"AP50": 60.0},
                  "spread": 1.0 if seeds > 1 else None,
                  "difference": vars(apart) if apart else None}  # fmt: skip
        rows[name] = {"results": {"folder_val": result}}
    return {"first_row": "ground truth", "rows": rows}


def test_a_sweep_is_a_table(tmp_path: Path) -> None:
    # As it was written before it told its machine.
    (tmp_path / "sweep.json").write_text(json.dumps(sweep_of(2)))
    lines = table(tmp_path, "sweep sweep.json")
    assert lines[0] == "|  | seeds | AP | AP50 | over ground truth, 95% interval | spread |"
    assert lines[-1] == "| gid | 2 | 39.0 | 60.0 | +7.5 (-24.3 to +39.3) | 1.0 |"
    keep(tmp_path, "sweep.json", sweep_of(1))
    assert table(tmp_path, "sweep sweep.json")[-1] == "| gid | 1 | 36.0 | 60.0 |"


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("limits other.json", "no file other.json in benchmarks/results"),
        ("accuracy a.json", "table accuracy a.json: expected what the command .* 'sets'"),
        ("plain a.json more", "table plain a.json more: expected"),
    ],
)
def test_what_no_command_writes_is_refused(tmp_path: Path, mark: str, expected: str) -> None:
    keep(tmp_path, "a.json", {"columns": ["a"], "rows": [["1"]]})
    with pytest.raises(ValueError, match=expected):
        table(tmp_path, mark)


def test_a_command_is_shown_without_the_folders_of_a_machine() -> None:
    typed = "/usr/bin/python3 -m benchmarks.accuracy --photographs /data/cells --json /tmp/a.json"
    shown = shown_command([*typed.split(), "--output=/tmp/b", "--seeds", "1"])
    assert shown == "python -m benchmarks.accuracy --photographs cells --seeds 1"
