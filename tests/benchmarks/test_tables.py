"""Tables of the documents: those of the figures that are kept, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.tables import PAGES, RESULTS, written

MARKED = "before\n<!-- table gpu -->\nold\n<!-- end -->\nafter\n"


def write_run(folder: Path) -> None:
    row = {"name": "step", "value": 1.23456, "limit": 1.1, "at_least": False, "reached": False}
    machine = {"gpu": "GPU 1", "cpus": 2, "torch": "2.11", "torchvision": "0.26", "python": "3.12"}
    parts = [
        {"name": "tests", "seconds": 3.0, "exit_code": 0, "rows": [], "output": ["= 5 passed ="]},
        {"name": "batch 2", "seconds": 4.0, "exit_code": 1, "rows": [row], "output": []},
    ]
    content = {"machine": machine, "date": "2026-01-02", "parts": parts}
    (folder / "gpu_1.json").write_text(json.dumps(content))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_current(page: Path) -> None:
    text = page.read_text()
    assert text == written(text, RESULTS), "run: python -m benchmarks.tables"


def test_the_command_writes_pages_and_its_check_names_those_that_are_not_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    page = tmp_path / "PAGE.md"
    page.write_text(MARKED)
    for name, value in {"ROOT": tmp_path, "RESULTS": tmp_path, "PAGES": (page,)}.items():
        monkeypatch.setattr(tables, name, value)
    assert tables.main(["--check"]) == 1 and page.read_text() == MARKED
    assert tables.main([]) == 0 and "GPU 1" in page.read_text()
    assert capsys.readouterr().out == "PAGE.md\n" * 2
    assert tables.main(["--check"]) == 0


def test_a_table_says_machine_and_date_and_what_was_missed(tmp_path: Path) -> None:
    write_run(tmp_path)
    text = written(MARKED, tmp_path)
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    assert "GPU 1, 2 CPU cores; PyTorch 2.11, torchvision 0.26, Python 3.12; 2026-01-02." in text
    assert "| tests | 5 passed |  |  |  |" in text
    assert "| batch 2 | step | 1.23 | 1.1 | not reached |" in text
    assert written(text, tmp_path) == text


def test_a_table_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no table 'other'; there are accuracy,"):
        written("<!-- table other -->\n<!-- end -->", tmp_path)
