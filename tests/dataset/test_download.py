"""The COCO download against a real HTTP server that breaks off, lies and forgets."""

import hashlib
import io
import re
import stat
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dataset.__main__ import main
from dataset.download import ARCHIVES, Archive, download_coco
from dataset.fetch import RemoteFile, check_url, fetch
from dataset.unpack import unpack
from storage.progress import format_bytes


@dataclass
class Server:
    """What the server holds and how it behaves; tests change it between requests."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    # Bytes of the body after which each request in turn is cut off; then whole bodies.
    cuts: list[int] = field(default_factory=list)
    # Status codes for the next requests, before anything is served.
    failures: list[int] = field(default_factory=list)
    ranges: bool = True
    honours_if_range: bool = True
    version: str = '"v1"'
    requests: list[dict[str, str | None]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, state)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_address[1]}/"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def answer(request: BaseHTTPRequestHandler, state: Server) -> None:
    """Answer one GET as a plain file server would, with the faults that are asked for."""
    asked, condition = request.headers.get("Range"), request.headers.get("If-Range")
    state.requests.append({"path": request.path, "range": asked, "if-range": condition})
    if state.failures:
        return request.send_error(state.failures.pop(0))
    if request.path not in state.files:
        return request.send_error(404)
    content, start = state.files[request.path], 0
    changed = condition is not None and condition != state.version
    if asked and state.ranges and not (changed and state.honours_if_range):
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
    if start and start >= len(content):
        return request.send_error(416)
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    request.send_header("Content-Length", str(len(content) - start))
    if state.version:
        request.send_header("ETag", state.version)
    request.end_headers()
    body = content[start:]
    request.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)
    request.close_connection = True


class Pauses(list[float]):
    """Stands in for `time.sleep` and remembers how long it was asked to wait."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def pause() -> Pauses:
    return Pauses()


CONTENT = bytes(range(256)) * 400


@pytest.fixture
def remote(server: Server) -> RemoteFile:
    server.files["/file"] = CONTENT
    return RemoteFile(
        url=server.url + "file", size_bytes=len(CONTENT), md5=hashlib.md5(CONTENT).hexdigest()
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_whole(remote: RemoteFile, tmp_path: Path, pause: Pauses) -> None:
    fetch(remote, tmp_path / "file", pause=pause)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert names(tmp_path) == ["file"] and pause == []


def test_broken_connections_are_continued_where_they_broke(
    server: Server, remote: RemoteFile, tmp_path: Path, pause: Pauses
) -> None:
    server.cuts = [1000, 50_000, 0, 7]
    fetch(remote, tmp_path / "file", pause=pause)
    assert (tmp_path / "file").read_bytes() == CONTENT
    offsets = [None, "bytes=1000-", "bytes=51000-", "bytes=51000-", "bytes=51007-"]
    assert [request["range"] for request in server.requests] == offsets
    assert {request["if-range"] for request in server.requests[1:]} == {'"v1"'}
    # The pause grows while nothing more arrives, and starts small again when something does.
    assert pause == [1, 1, 2, 1]


def test_a_later_run_continues_an_interrupted_one(
    server: Server,
    remote: RemoteFile,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    server.cuts = [60_000]
    with pytest.raises(KeyboardInterrupt):
        fetch(remote, tmp_path / "file", pause=interrupt)
    assert names(tmp_path) == ["file.partial", "file.partial.json"]
    fetch(remote, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests[-1]["range"] == "bytes=60000-"
    assert "file: continuing after 60.0 kB" in capsys.readouterr().err


def test_a_server_without_ranges_starts_again_and_says_so(
    server: Server,
    remote: RemoteFile,
    tmp_path: Path,
    pause: Pauses,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.ranges, server.cuts = False, [5000, 70_000]
    fetch(remote, tmp_path / "file", pause=pause)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert capsys.readouterr().err.count("starting again from the first byte") == 2


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_file_that_changed_on_the_server_is_not_continued(
    server: Server,
    remote: RemoteFile,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    honours_if_range: bool,
) -> None:
    server.files["/file"] = b"old" * (len(CONTENT) // 3) + b"!"
    server.cuts, server.honours_if_range = [5000], honours_if_range

    def change(_: float) -> None:
        server.files["/file"], server.version = CONTENT, '"v2"'

    fetch(remote, tmp_path / "file", pause=change)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert "the file there changed; starting again" in capsys.readouterr().err


def test_a_part_that_is_too_long_is_dropped(
    remote: RemoteFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.partial").write_bytes(CONTENT + b"more")
    fetch(remote, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert "too long, starting again" in capsys.readouterr().err


def test_a_range_that_the_server_does_not_have_starts_again(
    server: Server, remote: RemoteFile, tmp_path: Path, pause: Pauses
) -> None:
    server.files["/file"] = CONTENT[:100]
    (tmp_path / "file.partial").write_bytes(CONTENT[:200])

    def mend(_: float) -> None:
        server.files["/file"] = CONTENT

    fetch(remote, tmp_path / "file", pause=mend)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_corrupt_bytes_are_refused_and_removed(
    server: Server, remote: RemoteFile, tmp_path: Path
) -> None:
    server.files["/file"] = CONTENT[:-1] + b"?"
    with pytest.raises(ValueError, match=rf"expected MD5 {remote.md5}, found .* was removed"):
        fetch(remote, tmp_path / "file")
    assert names(tmp_path) == []


def test_a_file_of_another_size_is_refused_before_it_is_fetched(
    server: Server, remote: RemoteFile, tmp_path: Path
) -> None:
    server.files["/file"] = CONTENT[:-1]
    with pytest.raises(ValueError, match=r"expected a file of 102400 bytes, .* offers 102399"):
        fetch(remote, tmp_path / "file")


def test_errors_that_may_pass_are_tried_again(
    server: Server, remote: RemoteFile, tmp_path: Path, pause: Pauses
) -> None:
    server.failures = [503, 429, 500]
    fetch(remote, tmp_path / "file", pause=pause)
    assert pause == [1, 2, 4]


def test_a_server_that_keeps_failing_is_given_up(
    server: Server, remote: RemoteFile, tmp_path: Path, pause: Pauses
) -> None:
    server.cuts = [500, *[0] * 20]
    with pytest.raises(ConnectionError, match=r"gave up after 7 tries .* 500 B are kept"):
        fetch(remote, tmp_path / "file", pause=pause)
    assert (tmp_path / "file.partial").read_bytes() == CONTENT[:500]


def test_a_missing_file_fails_at_once(
    server: Server, remote: RemoteFile, tmp_path: Path, pause: Pauses
) -> None:
    server.files.clear()
    with pytest.raises(ConnectionError, match=r"the server answered 404 .*; check --mirror"):
        fetch(remote, tmp_path / "file", pause=pause)
    assert pause == []


def test_an_unreachable_server_is_tried_and_given_up(tmp_path: Path, pause: Pauses) -> None:
    # Port 9 on the loopback: nothing listens there.
    remote = RemoteFile(url="http://127.0.0.1:9/file", size_bytes=1, md5="")
    with pytest.raises(ConnectionError, match=r"gave up after 7 tries \(cannot connect"):
        fetch(remote, tmp_path / "file", pause=pause)
    assert pause == [1, 2, 4, 8, 16, 32]


def test_a_full_disk_is_not_taken_for_a_broken_connection(
    remote: RemoteFile, tmp_path: Path, pause: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("dataset.fetch.open", lambda *_: Full(), raising=False)
    with pytest.raises(OSError, match="No space left"):
        fetch(remote, tmp_path / "file", pause=pause)
    assert pause == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/", "host/path", "http://"])
def test_other_addresses_than_web_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no web address"):
        check_url(url)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="holds credentials") as caught:
        check_url("https://me:secret@host/")
    assert "secret" not in str(caught.value)


# Whole archives.


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def archive_of(server: Server, path: str, members: dict[str, bytes], **layout: Any) -> Archive:
    content = zipped(members)
    server.files["/" + path] = content
    return Archive(
        path=path,
        size_bytes=len(content),
        md5=hashlib.md5(content).hexdigest(),
        unpacked_bytes=sum(map(len, members.values())),
        **layout,
    )


IMAGES = {f"val2017/{n:012d}.jpg": bytes([n]) * 500 for n in range(1, 6)}
NOTES = {"annotations/instances_val2017.json": b"{}" * 300}


@pytest.fixture
def archives(server: Server) -> dict[str, Archive]:
    images = {"val2017/": b"", **IMAGES}
    return {
        "val2017": archive_of(server, "zips/val2017.zip", images, folder="val2017", num_images=5),
        "annotations": archive_of(
            server,
            "annotations/notes.zip",
            NOTES,
            folder="annotations",
            files=("instances_val2017.json",),
        ),
    }


def unpacked(coco: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(coco)): path.read_bytes()
        for path in coco.rglob("*")
        if path.is_file() and "archives" not in path.parts
    }


def get(output: Path, server: Server, archives: dict[str, Archive], **options: Any) -> Path:
    return download_coco(
        output, splits=tuple(archives), base_url=server.url, archives=archives, **options
    )


def test_coco_lands_where_detectron2_looks(
    server: Server, archives: dict[str, Archive], tmp_path: Path, pause: Pauses
) -> None:
    server.cuts = [300]
    coco = get(tmp_path / "data", server, archives, pause=pause)
    assert coco == tmp_path / "data" / "coco"
    assert unpacked(coco) == IMAGES | NOTES
    assert names(coco / "archives") == [".lock", "notes.zip", "val2017.zip"]


def test_what_is_there_is_not_fetched_again(
    server: Server,
    archives: dict[str, Archive],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    coco = get(tmp_path, server, archives, remove_archives=True)
    assert names(coco / "archives") == [".lock"]
    server.requests.clear()
    get(tmp_path, server, archives)
    assert server.requests == []
    assert capsys.readouterr().err.count("already there") == 2


def test_the_command_fetches_from_a_mirror(
    server: Server,
    archives: dict[str, Archive],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, archive in archives.items():
        monkeypatch.setitem(ARCHIVES, name, archive)
    arguments = ["coco", "--output", str(tmp_path), "--mirror", server.url]
    arguments += ["--split", "val2017", "annotations"]
    monkeypatch.setattr("storage.progress.LINE_EVERY_SEC", 0.0)
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith(f"set DETECTRON2_DATASETS={tmp_path}\n")
    for phase in ("fetching", "checking", "unpacking"):
        assert re.search(rf"^{phase} val2017.zip: (\S+ \w+) of \1, ", printed.err, re.MULTILINE)
    assert unpacked(tmp_path / "coco") == IMAGES | NOTES


def test_one_split_can_be_had_alone(
    server: Server, archives: dict[str, Archive], tmp_path: Path
) -> None:
    coco = download_coco(
        tmp_path, splits=["annotations"], base_url=server.url.rstrip("/"), archives=archives
    )
    assert unpacked(coco) == NOTES


def test_an_interrupted_unpacking_is_completed_from_the_archive(
    server: Server, archives: dict[str, Archive], tmp_path: Path
) -> None:
    coco = get(tmp_path, server, archives)
    lost, damaged = coco / "val2017" / "000000000003.jpg", coco / "val2017" / "000000000004.jpg"
    lost.unlink()
    damaged.write_bytes(b"x" * 500)
    kept = coco / "val2017" / "000000000001.jpg"
    before = kept.stat().st_mtime_ns
    server.requests.clear()
    get(tmp_path, server, archives)
    assert server.requests == []
    assert unpacked(coco) == IMAGES | NOTES
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"short", "expected .* bytes, found 5; delete it"), (None, "expected MD5 .* delete it")],
)
def test_an_archive_that_was_put_there_is_checked_and_kept(
    server: Server,
    archives: dict[str, Archive],
    tmp_path: Path,
    content: bytes | None,
    message: str,
) -> None:
    path = tmp_path / "coco" / "archives" / "val2017.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(content or b"x" * archives["val2017"].size_bytes)
    with pytest.raises(ValueError, match=message):
        get(tmp_path, server, archives)
    assert path.exists()


def test_too_little_disk_is_said_before_the_first_byte(
    server: Server,
    archives: dict[str, Archive],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(OSError, match=r"this download needs .* only 1\.0 kB are free"):
        get(tmp_path, server, archives)
    assert server.requests == []


def test_removing_archives_needs_less_disk(
    server: Server,
    archives: dict[str, Archive],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = {name: replace(archive, unpacked_bytes=10_000) for name, archive in archives.items()}
    sizes = sum(archive.size_bytes for archive in large.values())

    class Usage:
        free = 20_000 + sizes - 1

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(OSError, match="use --remove-archives"):
        get(tmp_path, server, large)
    get(tmp_path, server, large, remove_archives=True)


def test_two_downloads_into_one_folder_are_refused(
    server: Server, archives: dict[str, Archive], tmp_path: Path
) -> None:
    server.cuts = [300]

    def start_another(_: float) -> None:
        with pytest.raises(OSError, match="another download into this folder is running"):
            get(tmp_path, server, archives)

    get(tmp_path, server, archives, pause=start_another)


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/tmp/evil.jpg", "val2017/../../evil.jpg", "train2017/a.jpg", "a.jpg"]
)
def test_members_outside_their_folder_are_refused_and_nothing_is_written(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"val2017/good.jpg": b"x", name: b"evil"}))
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ValueError, match="is a link or lies outside of val2017/"):
        unpack(tmp_path / "a.zip", into, top="val2017")
    assert names(into) == [] and names(tmp_path) == ["a.zip", "into"]


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("val2017/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(ValueError, match="is a link"):
        unpack(tmp_path / "a.zip", tmp_path, top="val2017")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=rf"{path}: damaged archive"):
        unpack(path, tmp_path, top="val2017")
    # Stored, so that the damage meets the content and is seen by the CRC alone.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("val2017/a.jpg", b"content" * 9)
    path.write_bytes(path.read_bytes().replace(b"content", b"CONTENT", 1))
    with pytest.raises(ValueError, match=r"damaged archive .*CRC"):
        unpack(path, tmp_path, top="val2017")
    assert not (tmp_path / "val2017" / "a.jpg").exists()


def test_the_official_archives_are_the_known_ones() -> None:
    known = {name: (archive.size_bytes, archive.md5) for name, archive in ARCHIVES.items()}
    assert known == {
        "train2017": (19336861798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
        "val2017": (815585330, "442b8da7639aecaf257c1dceb8ba8c80"),
        "annotations": (252907541, "f4bbac642086de4f52a3fdda2de5fa2c"),
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (19336861798, "19.3 GB"),
        (2 * 10**15, "2000.0 TB"),
    ],
)
def test_bytes_are_written_for_people(value: float, text: str) -> None:
    assert format_bytes(value) == text
