"""An object store: what a shard costs in requests, what its failures say, and its absences."""

from __future__ import annotations

import logging
import pickle
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from storage import CacheReader, CacheWriter, StoreAccessError, StoreFullError
from storage.__main__ import main
from storage.layout import commit_key, object_key
from storage.location import Location
from tests.s3_server import S3Server
from tests.storage.cases import (
    FIRST,
    contents,
    fill,
    make_arrays,
    make_cache,
    make_index,
    make_manifest,
)

Capture = pytest.CaptureFixture[str]


def open_writer(location: str, num_views: int = 1) -> CacheWriter:
    index = make_index(num_views=num_views)
    return CacheWriter(location, make_manifest(index), index)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every call of the client from now on: kind, and key or prefix."""
    import obstore

    made: list[tuple[str, str]] = []
    for kind in ("put", "get", "get_range", "head", "delete", "list"):
        name = "list" if kind == "list" else f"{kind}_async"
        original = getattr(obstore, name)

        def note(
            store: Any, *args: Any, _kind: str = kind, _call: Any = original, **kwargs: Any
        ) -> Any:
            made.append((_kind, str(args[0] if args else kwargs.get("prefix"))))
            return _call(store, *args, **kwargs)

        monkeypatch.setattr(obstore, name, note)
    return made


@pytest.mark.s3
def test_a_shard_is_claimed_written_and_committed_with_few_requests(
    s3_bucket: str, requests: list[tuple[str, str]]
) -> None:
    writer = open_writer(f"{s3_bucket}/requests")
    count = len(writer.manifest.arrays[FIRST.bucket])
    requests.clear()
    assert writer.claim(FIRST, "me", 60)
    assert Counter(kind for kind, _ in requests) == {"put": 1, "list": 1}
    requests.clear()
    assert writer.claim(FIRST, "me", 60)  # prolonged
    assert Counter(kind for kind, _ in requests) == {"put": 1, "list": 1, "delete": 1}
    requests.clear()
    writer.write(FIRST, make_arrays(writer, FIRST))
    # Is it committed? Each object and the commit put; each object read back; one look at the claim,
    # and, before a writer's first commit, at the root and its digest.
    kinds = Counter(kind for kind, _ in requests)
    assert kinds == {"get": 1, "put": count + 1, "get_range": count + 2, "list": 1}
    assert requests[-1] == ("put", commit_key(FIRST))
    assert {key for kind, key in requests if kind == "list"} == {f"claims/{FIRST}/"}
    requests.clear()
    writer.release(FIRST)
    assert [kind for kind, _ in requests] == ["delete"]


@pytest.mark.s3
def test_a_resumed_dump_lists_the_commits_alone(
    s3_bucket: str, requests: list[tuple[str, str]]
) -> None:
    open_writer(f"{s3_bucket}/resumed")
    requests.clear()
    writer = open_writer(f"{s3_bucket}/resumed")
    assert writer.missing()
    assert [key for kind, key in requests if kind == "list"] == ["commits/"]
    assert {kind for kind, _ in requests} <= {"list", "get", "get_range"}


@pytest.mark.s3
def test_a_reader_asks_for_manifest_and_index_then_for_a_commit_and_the_arrays_that_it_reads(
    s3_bucket: str, requests: list[tuple[str, str]]
) -> None:
    make_cache(Location(f"{s3_bucket}/reading"))
    requests.clear()
    reader = CacheReader(f"{s3_bucket}/reading", signals=["votes"])
    assert {key.partition("/")[0] for _, key in requests} == {
        "zarr.json", "manifest.sha256", "index",
    }  # fmt: skip
    requests.clear()
    reader.read(0)
    used = [f"buckets/{FIRST.bucket}/{name}/c/0/0" for name in ("votes", "record")]
    assert requests == [("get", commit_key(FIRST)), *(("get_range", key) for key in used)]
    requests.clear()
    reader.read(0)
    assert [kind for kind, _ in requests] == ["get_range"] * 2
    requests.clear()
    assert reader.missing() == []
    assert requests == [("list", "commits/")]


@pytest.mark.s3
def test_the_commands_work_on_an_object_store(
    s3_bucket: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Smaller than most objects, and other than what is read of an object store at once.
    monkeypatch.setattr("storage.location.LOCAL_BLOCK", 1000)
    url, local = f"{s3_bucket}/commands", tmp_path / "local"
    writer = make_cache(Location(url))
    make_cache(local)
    assert main(["verify", url, "--level", "deep"]) == 0
    assert main(["compare", url, str(local)]) == 0
    assert "same plan, same bytes" in capsys.readouterr().out
    key = object_key(FIRST, writer.manifest.arrays[FIRST.bucket][0])
    data = bytearray(writer.location.get(key) or b"")
    data[0] ^= 1
    writer.location.put(key, bytes(data))
    assert main(["verify", url]) == 1
    assert f"shard {FIRST}, array echo" in capsys.readouterr().out
    assert main(["compare", url, str(local)]) == 1
    assert main(["repair", url]) == 0
    assert f"drop: {FIRST}" in capsys.readouterr().out
    assert writer.missing() == [FIRST]
    fill(writer)
    assert main(["compare", url, str(local)]) == 0


_SECRETS = ("AKIAEXAMPLE", "verysecret")
_XML = "<?xml version='1.0'?>\n<Error><Code>{}</Code>\n<Message>AKIAEXAMPLE</Message></Error>"


@contextmanager
def answering(status: int, body: str, cut: int = 0, times: int = sys.maxsize) -> Iterator[str]:
    """A server that gives every request the same answer, in the first ones its last bytes missing.

    Yields:
        Its URL.
    """
    left = [cut] * min(times, 1000)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            missing = left.pop() if left else 0
            self.send_header("Content-Length", str(len(body) + missing))
            self.send_header("Last-Modified", "Tue, 24 Nov 2026 06:00:00 GMT")
            self.send_header("ETag", '"a"')
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = do_HEAD = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user's environment holds, and a client that gives up soon."""
    pytest.importorskip("obstore")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", _SECRETS[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", _SECRETS[1])
    monkeypatch.setattr("storage.remote.RETRIES", {"max_retries": 1})


_ACTIONS: dict[str, Callable[[Location], object]] = {
    "a/get": lambda place: place.get("a/get"),
    "a/put": lambda place: place.put("a/put", b"1"),
    "a/create": lambda place: place.put_if_absent("a/create", b"1"),
    "a/size": lambda place: place.size("a/size"),
    "a": lambda place: place.sizes("a"),
}


@pytest.mark.parametrize("key", _ACTIONS)
@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "InvalidAccessKeyId", r"403 Forbidden"),
        (503, "SlowDown", r"503 Service Unavailable"),
        (400, "AuthorizationHeaderMalformed", r"400 Bad Request"),
    ],
)
def test_a_failure_is_one_line_with_key_and_reason_and_no_secret(
    credentials: None, monkeypatch: pytest.MonkeyPatch, key: str, status: int, code: str, said: str
) -> None:
    with answering(status, _XML.format(code)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StoreAccessError) as caught:
            _ACTIONS[key](Location("s3://bucket/cache"))
    message = str(caught.value)
    assert message.startswith(f"s3://bucket/cache/{key}: the object store failed: {said}")
    assert "\n" not in message
    if key != "a/size":  # there is no text in the answer to HEAD
        assert f"({code})" in message
    if status == 403:
        assert message.endswith("; check the credentials in the environment, and what they allow")
    everything = "".join(traceback.format_exception(caught.value))
    assert not any(secret in everything for secret in _SECRETS)


@pytest.mark.parametrize(
    ("status", "code", "ask", "said"),
    [
        # S3's 400 of a token is about the credentials.
        (
            400,
            "ExpiredToken",
            lambda store: Location(store).get("a"),
            r"400 .*\(ExpiredToken\); check the credentials",
        ),
        # A bucket that does not exist is no missing file.
        (
            404,
            "NoSuchBucket",
            lambda store: Location(store).put("a", b"1"),
            r"404 Not Found \(NoSuchBucket\); .* bucket's name",
        ),
        (404, "NoSuchBucket", open_writer, r"404 Not Found \(NoSuchBucket\)"),
    ],
)
def test_what_a_status_alone_would_not_tell_is_told_by_the_code_of_s3(
    credentials: None,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    ask: Callable[[str], object],
    said: str,
) -> None:
    with answering(status, _XML.format(code)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StoreAccessError, match=said):
            ask("s3://bucket/cache")


def test_an_answer_that_breaks_off_is_an_error_and_never_short_data(
    credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.location.PATIENCE_SEC", 0.1)
    with answering(200, "12345", cut=5) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StoreAccessError, match=r"^s3://bucket/cache/a: [^\n]*$"):
            Location("s3://bucket/cache").get("a")


def test_the_very_first_answer_may_break_off(
    credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.location._PAUSE_SEC", 0.01)
    with answering(404, _XML.format("NoSuchKey"), cut=5, times=2) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert Location("s3://bucket/cache").get("a") is None


def test_nobody_waits_for_a_store_that_is_only_looked_at(
    credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(200, "<ListBucketResult/>", cut=5) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        start = time.monotonic()
        with pytest.raises(StoreAccessError, match="the object store failed"):
            Location("s3://bucket/cache").reach(once=True)
    assert time.monotonic() - start < 20


def test_a_server_that_does_not_answer_is_given_up_after_the_timeout_of_the_environment(
    credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.remote.RETRIES", {"max_retries": 0})
    monkeypatch.setenv("AWS_TIMEOUT", "100ms")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StoreAccessError, match=r"/a: the object store failed: .*timed out"):
            Location("s3://bucket/cache").get("a")


def test_a_full_store_is_a_full_store(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(507, _XML.format("StorageFull")) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StoreFullError, match="no space left while writing a"):
            Location("s3://bucket/cache").put("a", b"1")


@pytest.mark.s3
def test_a_location_carries_no_credentials(s3_bucket: str, credentials: None) -> None:
    place = Location(f"{s3_bucket}/pickled")
    place.put("a", b"1")
    raw = pickle.dumps(place)
    assert not any(secret.encode() in raw for secret in _SECRETS)
    assert pickle.loads(raw).get("a") == b"1"


def test_other_providers_take_their_settings_from_the_environment_too(
    credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(
        ValueError, match=r"^az://container/x: .* AZURE_STORAGE_ACCOUNT_NAME is not"
    ):
        _ = Location("az://container/x").store
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for url in ("az://container/x", "gs://bucket/x"):
        _ = Location(url).store


@pytest.mark.s3
def test_readers_and_writers_wait_for_a_server_that_was_killed(
    mortal_s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The client gives up before the server is back; the store goes on.
    monkeypatch.setattr("storage.remote.RETRIES", {"max_retries": 1})
    make_cache(tmp_path / "whole", num_views=2)
    make_cache(Location("s3://caches/read"))
    reader, writer = CacheReader("s3://caches/read"), open_writer("s3://caches/written", 2)
    passes, stop = [0], threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                reader.read_many(range(len(reader)))
                passes[0] += 1
        except BaseException as error:
            failures.append(error)

    def write() -> None:
        try:
            for shard in writer.missing():
                assert writer.claim(shard, "me", 60)
                writer.write(shard, make_arrays(writer, shard))
                writer.release(shard)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for work in (read, write)]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        wait_for(lambda: passes[0] > 0 and len(writer.missing()) < 6)
        mortal_s3.kill()
        time.sleep(1)
        before = passes[0]
        mortal_s3.start()
        wait_for(lambda: passes[0] > before + 2 or bool(failures))
        threads[1].join(120)
        stop.set()
        threads[0].join(120)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert "trying again" in caplog.text
    assert contents(Location("s3://caches/written")) == contents(tmp_path / "whole")
    assert Location("s3://caches/written").sizes("claims") == {}


@pytest.mark.s3
def test_a_store_that_does_not_come_back_is_given_up_with_a_warning_before(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("storage.location.PATIENCE_SEC", 1.5)
    monkeypatch.setattr("storage.remote.RETRIES", {"max_retries": 0})
    place = Location(f"{s3_bucket}/gone")
    place.put("a", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    again = pickle.loads(pickle.dumps(place))  # a worker's: its client is a new one
    with pytest.raises(StoreAccessError, match=r"gone/a: the object store failed: .*refused"):
        again.get("a")
    assert "trying again for 1 s" in caplog.text or "trying again for 2 s" in caplog.text


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
