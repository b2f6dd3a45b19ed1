"""A dump into an object store: the bytes of a local one, also when the server dies in between."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stage1_dump.__main__ import main
from storage import verify
from storage.location import Location
from tests.s3_server import BUCKET, S3Server
from tests.stage1_dump.conftest import IMAGES, Configure
from tests.stage1_dump.helpers import dump, store_bytes

TWO_VIEWS = {"NUM": 2}
Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.s3


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test need wait long until claims that could not be given back run out."""
    monkeypatch.setattr("stage1_dump.ranks.LEASE_SEC", 6.0)
    monkeypatch.setattr("stage1_dump.dump.POLL_SEC", 0.2)


def new_url() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def remote_bytes(url: str) -> dict[str, bytes]:
    """Every compared object by its key, as `store_bytes` gives it for a folder."""
    place = Location(url)
    keys = [key for key in place.sizes() if key.partition("/")[0] not in ("claims", "log")]
    return dict(zip(keys, (data or b"" for data in place.get_many(keys)), strict=True))


@contextmanager
def killed_at_put(server: S3Server, number: int, *, restart: bool) -> Iterator[None]:
    """Kill the server just before the store's object of this number is put, by any thread."""
    put, lock, left = Location.put, threading.Lock(), [number]
    restarts: list[threading.Thread] = []

    def revive() -> None:
        time.sleep(1)
        server.start()

    def killing_put(self: Location, key: str, data: bytes) -> None:
        with lock:
            left[0] -= 1
            if left[0] == 0:
                server.kill()
                if restart:
                    restarts.append(threading.Thread(target=revive))
                    restarts[0].start()
        put(self, key, data)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Location, "put", killing_put)
            yield
    finally:
        for thread in restarts:
            thread.join()
    assert left[0] <= 0, "the dump put fewer objects"


def test_a_dump_to_s3_equals_a_local_one(
    s3_bucket: str, reference: Path, configure: Configure, capsys: Capture
) -> None:
    url = new_url()
    config = configure(VIEWS=TWO_VIEWS, CACHE={"LOCATION": url}, DATALOADER={"NUM_WORKERS": 1})
    dump(config)
    assert remote_bytes(url) == store_bytes(reference)
    assert Location(url).sizes("claims") == {}
    assert verify(url, level="deep").ok
    capsys.readouterr()
    assert main(["status", "--json", url]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["complete"] and status["done_records"] == 2 * len(IMAGES)


def test_a_dump_waits_for_a_server_that_is_killed_and_started_again(
    mortal_s3: S3Server, reference: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client gives up before the server is back; the store goes on.
    monkeypatch.setattr("storage.remote.RETRIES", {"max_retries": 1})
    url = new_url()
    config = configure(VIEWS=TWO_VIEWS, CACHE={"LOCATION": url})
    with killed_at_put(mortal_s3, 20, restart=True):
        dump(config)
    assert remote_bytes(url) == store_bytes(reference)


def test_a_dump_whose_server_stays_away_ends_in_one_line_and_is_resumed(
    mortal_s3: S3Server,
    reference: Path,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    url = new_url()
    config = configure(VIEWS=TWO_VIEWS, CACHE={"LOCATION": url})
    with killed_at_put(mortal_s3, 20, restart=False), monkeypatch.context() as patch:
        patch.setattr("storage.location.PATIENCE_SEC", 0.5)
        patch.setattr("storage.remote.RETRIES", {"max_retries": 2})
        assert main(["run", "--config-file", str(config)]) == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error:")]
    assert line.startswith(f"error: {url}/") and "the object store failed: " in line
    mortal_s3.start()
    assert len(Location(url).sizes("commits")) < len(list((reference / "commits").rglob("*.json")))
    dump(config)
    assert remote_bytes(url) == store_bytes(reference)
