"""A finished tiny cache to copy, and the store backends, a real S3 server among them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from zarr.storage import MemoryStore

from storage.location import Location
from tests.storage.cases import make_cache


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache of two views. Not to be changed: see `cache`."""
    path = tmp_path_factory.mktemp("finished") / "cache"
    make_cache(path, num_views=2)
    return path


@pytest.fixture
def cache(finished: Path, tmp_path: Path) -> Path:
    """A copy of the complete cache, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "cache"))


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def new_location(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Location]:
    """Make empty locations of one backend. What holds for one must hold for all."""
    if request.param == "memory":
        return lambda: Location(MemoryStore())
    if request.param == "s3":
        bucket: str = request.getfixturevalue("s3_bucket")
        return lambda: Location(f"{bucket}/{uuid.uuid4().hex}")
    return lambda: Location(tmp_path / uuid.uuid4().hex)


@pytest.fixture
def s3_bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a bucket, with the environment that a user would set."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    return "s3://caches"


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of an S3 server on this machine, stopped at the end."""
    folder = tmp_path_factory.mktemp("s3")
    beside = Path(sys.executable).with_name("weed")
    program = str(beside) if beside.exists() else shutil.which("weed")
    assert program is not None
    ports = {name: _free_port() for name in ("s3", "master", "volume", "filer", "admin")}
    command = [
        program, "-logdir", str(folder), "mini", f"-dir={folder}", "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1", "-bucket=caches", "-webdav=false", "-admin.ui=false",
        "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        *(f"-{name}.port={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (folder / "output").open("wb") as output:
        server = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
        try:
            _wait_for_bucket(f"http://127.0.0.1:{ports['s3']}/caches", server)
            yield ports["s3"]
        finally:
            server.terminate()
            server.wait(timeout=30)


def _free_port() -> int:
    # The server adds 10000 for a second port of each kind.
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            if port > 55_000:
                continue
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


def _wait_for_bucket(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert server.poll() is None, "the S3 server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError as error:
            if error.code == 403:  # there, and asks for a signature
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{url} does not answer")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk, nor for a writer about to make a damaged manifest right.

    No test can pull the plug; that all is forced to the disk before the commit has one of its own,
    and the writers that are killed do force it.
    """
    monkeypatch.setattr("storage.metadata._PATIENCE_SEC", (0.0,))
    monkeypatch.setattr("storage.location._fsync", lambda _: None)
