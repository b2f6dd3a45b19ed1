"""What every test shares: one thread of arithmetic, skips with a reason, and an S3 server."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_server import BUCKET, S3Server, find_program

# Before torch is imported: its pools cost more than they give on tiny models, and the number of
# threads moves the last bits of a sum.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A shell lets what it runs in the background ignore Ctrl-C, which the tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def forgotten_output() -> Iterator[None]:
    """Let loggers forget a test's captured output: detectron2's would go on writing to it."""
    yield
    for logger in (logging.getLogger(), *logging.Logger.manager.loggerDict.values()):
        for handler in list(getattr(logger, "handlers", ())):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)  # type: ignore[union-attr]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests whose device or server is not there, with the reason."""
    for marker, missing in (("gpu", _missing_gpu), ("s3", _missing_s3)):
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = missing() if marked else None
        if reason:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _missing_s3() -> str | None:
    if find_program():
        return None
    return "no local S3 server: the program weed of the extra dev is not installed"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that all tests share, stopped at the end."""
    yield from _running(tmp_path_factory.mktemp("s3"))


@pytest.fixture
def mortal_s3(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Server]:
    """An S3 server for one test to kill, with the environment that names it."""
    for server in _running(tmp_path_factory.mktemp("s3")):
        _name_in_environment(server, monkeypatch)
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a bucket of the shared server, with the environment that a user would set."""
    _name_in_environment(s3_server, monkeypatch)
    return f"s3://{BUCKET}"


def _running(folder: Path) -> Iterator[S3Server]:
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()  # its data is of no use any more, and a clean end takes seconds


def _name_in_environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
