"""Files that are whole or not there, also on a full disk."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from storage.whole import replaced, write_whole
from tests.fresh import files_no_larger_than


def test_what_cannot_be_written_leaves_the_old_file_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_whole(path, "old")
    with files_no_larger_than(1000), pytest.raises(OSError, match=r"'[^']*/plan\.json'$") as caught:
        write_whole(path, "new" * 1000)
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match=r"/gone/plan\.json'$"):
        write_whole(tmp_path / "gone" / "plan.json", "new")


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"/source'$"), replaced(tmp_path / "target"):
        open(tmp_path / "source").close()


def test_what_is_no_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_whole(tmp_path / "pipe", "said")
    reader.join(timeout=30)
    assert found == ["said"] and (tmp_path / "pipe").is_fifo()
