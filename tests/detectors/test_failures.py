"""What a job says when its surroundings fail it: one line, with a path and what to do."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detectors.command import run_command
from detectors.failures import failing_in_one_line, in_one_line
from storage import CacheError
from storage.resources import exhausted, with_remedy
from tests.fresh import files_no_larger_than, stdout_of

Capture = pytest.CaptureFixture[str]


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


LACKING = [
    (os_error(errno.ENOSPC), "no space left; free some"),
    (os_error(errno.EDQUOT), "no space left; free some"),
    (os_error(errno.EFBIG), "ulimit -f unlimited"),
    (os_error(errno.EMFILE), r"ulimit -n"),
    (os_error(errno.ENFILE), r"ulimit -n"),
    (os_error(errno.ENOMEM), "use smaller batches"),
    (os_error(errno.EAGAIN), "ulimit -u"),
    (MemoryError(), "use smaller batches"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't"
                  " allocate memory: you tried to allocate 8 bytes."), "use smaller batches"),
    (RuntimeError("can't start new thread"), "ulimit -u"),
    (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "said"), LACKING, ids=lambda value: str(value)[:30])
def test_what_has_run_out_is_one_line_with_the_remedy(
    error: BaseException, said: str, capsys: Capture
) -> None:
    def command() -> int:
        raise error

    assert run_command(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


def test_it_is_said_with_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def refuse(error: BaseException) -> str:
        raise MemoryError

    monkeypatch.setattr("configs.wording.users_place", refuse)
    assert run_command(lambda: int(str(raised(MemoryError())))) == 1
    assert "out of memory" in capsys.readouterr().err


def test_the_number_of_files_is_said_where_none_can_be_opened() -> None:
    # A module cannot be imported then.
    program = """
import os
from storage.resources import exhausted
try:
    while True:
        os.dup(0)
except OSError as error:
    print(exhausted(error))
"""
    limited = ["sh", "-c", 'ulimit -n 20; exec "$@"', "-", sys.executable, "-c", program]
    assert "(limit 20)" in stdout_of(limited)


def test_nothing_else_is_explained_away() -> None:
    for error in (RuntimeError("shapes differ"), os_error(errno.EACCES), ValueError("x")):
        assert exhausted(error) == ""
        assert with_remedy(error, "text") == "text"
    with pytest.raises(RuntimeError, match="shapes differ"):
        run_command(lambda: int(str(raised(RuntimeError("shapes differ")))))


def raised(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        os_error(errno.ENOSPC),
        os_error(errno.EFBIG),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_a_job_that_cannot_write_names_the_folder(error: Exception) -> None:
    @in_one_line
    def job(cfg: Any, args: Any) -> None:
        raise error

    with pytest.raises(OSError, match=r"^output/x: cannot be written: .*(ulimit -f|ree some)"):
        job(SimpleNamespace(OUTPUT_DIR="output/x"), argparse.Namespace())  # type: ignore[arg-type]


def test_other_errors_of_a_job_pass() -> None:
    for error in (RuntimeError("shapes differ"), FileNotFoundError("a"), CacheError("b")):
        with pytest.raises(type(error), match=str(error)), failing_in_one_line("output/x"):
            raise error


class FullDisk(io.StringIO):
    """A log file on a disk that is full."""

    name = "output/x/log.txt"

    def flush(self) -> None:
        raise os_error(errno.ENOSPC)


def test_a_log_that_cannot_be_written_says_so_once(capsys: Capture) -> None:
    logger = logging.getLogger("test of a full disk")
    handler = logging.StreamHandler(FullDisk())
    logger.addHandler(handler)
    logger.propagate = False
    with failing_in_one_line("output/x"):
        for number in range(100):
            logger.warning("line %d", number)
    assert capsys.readouterr().err == (
        "warning: output/x/log.txt: [Errno 28] No space left on device: no space left; free some,"
        " and run again; this log ends here\n"
    )


def test_the_loop_logs_no_traceback_of_what_a_user_can_mend(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("detectron2.engine.train_loop")
    for error, shortened in [
        (OSError("the image workers failed"), True),
        (MemoryError(), True),
        (CacheError("damaged"), True),
        (RuntimeError("shapes differ"), False),
    ]:
        caplog.clear()
        with failing_in_one_line("output/x"):
            try:
                raise error
            except BaseException:
                logger.exception("Exception during training:")
        (record,) = caplog.records
        assert ("Traceback" not in caplog.text) == shortened
        assert record.getMessage().startswith("Training stopped: " if shortened else "Exception")


def test_a_file_size_limit_is_met_by_the_writer_of_a_store_too(tmp_path: Path) -> None:
    from storage import StoreFullError
    from storage.location import Location

    said = r"a/b cannot be written: .*ulimit -f unlimited"
    with files_no_larger_than(1000), pytest.raises(StoreFullError, match=said):
        Location(tmp_path).put("a/b", b"\0" * 2000)
    assert list((tmp_path / "a").iterdir()) == []
    assert sys.exc_info() == (None, None, None)
