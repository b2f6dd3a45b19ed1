"""Fetching one large file over HTTP: resumed where it broke off, checked by size and MD5.

While a file is on its way it is called `NAME.partial`; `NAME.partial.json` beside it remembers
where it comes from and which version of it (ETag or date), so that a file that changed on the
server is never continued with other bytes.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from storage.progress import Progress, format_bytes

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SEC = 30.0
# Breaks in a row without a byte more than before, until giving up.
_MAX_FAILURES = 7
_LONGEST_PAUSE_SEC = 60.0
_WORTH_RETRYING = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file on a server, and what it must be."""

    url: str
    size_bytes: int
    md5: str

    def __post_init__(self) -> None:
        check_url(self.url)


class _ConnectionBroken(Exception):
    """The transfer stopped early, for a reason that may pass."""


def check_url(url: str) -> None:
    """Refuse what is no plain web address.

    Raises:
        ValueError: another scheme than http or https, no host, or credentials in the URL.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        # Not repeated: it holds the secret.
        raise ValueError("the URL holds credentials; take them out and use a server without")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{url!r} is no web address; it must start with http:// or https://")


def fetch(remote: RemoteFile, target: Path, *, pause: Callable[[float], None] = time.sleep) -> None:
    """Download a file, continuing an earlier try, and check it.

    Args:
        remote: what to fetch.
        target: the file to write; it appears only when it is complete and its MD5 right.
        pause: waits that many seconds; tests pass their own.

    Raises:
        ConnectionError: the server cannot be reached, keeps breaking off, or refuses.
        ValueError: the server offers a file of another size, or the MD5 is wrong.
        OSError: the disk is full, or cannot be written.
    """
    partial = target.with_name(target.name + ".partial")
    start = _size(partial)
    with Progress(
        f"fetching {target.name}", total=remote.size_bytes, unit="B", start=start
    ) as progress:
        if start:
            progress.say(f"{target.name}: continuing after {format_bytes(start)}")
        _transfer_with_retries(remote, partial, progress, pause)
    found = file_md5(partial)
    if found != remote.md5:
        _forget(partial)
        raise ValueError(
            f"{remote.url}: expected MD5 {remote.md5}, found {found}; the damaged download was "
            "removed, run the command again or choose another --mirror"
        )
    partial.replace(target)
    _forget(partial)


def file_md5(path: Path) -> str:
    """MD5 of a file, in hexadecimal; shows its progress for large files."""
    digest = hashlib.md5(usedforsecurity=False)
    label = f"checking {path.name.removesuffix('.partial')}"
    with (
        open(path, "rb") as file,
        Progress(label, total=_size(path), unit="B") as progress,
    ):
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            progress.update(len(chunk))
    return digest.hexdigest()


def _transfer_with_retries(
    remote: RemoteFile, partial: Path, progress: Progress, pause: Callable[[float], None]
) -> None:
    failures, furthest = 0, _size(partial)
    while True:
        try:
            return _transfer(remote, partial, progress)
        except _ConnectionBroken as error:
            reached = _size(partial)
            failures = 1 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            if failures >= _MAX_FAILURES:
                raise ConnectionError(
                    f"{remote.url}: gave up after {failures} tries ({error}); "
                    f"{format_bytes(reached)} are kept, run the command again to continue"
                ) from None
            seconds = min(_LONGEST_PAUSE_SEC, 2.0 ** (failures - 1))
            progress.say(
                f"{partial.stem}: {error} at {format_bytes(reached)}; "
                f"trying again in {seconds:.0f} s"
            )
            pause(seconds)


def _transfer(remote: RemoteFile, partial: Path, progress: Progress) -> None:
    """Fetch what is missing, in one connection."""
    have = _size(partial)
    if have > remote.size_bytes:
        progress.say(f"{partial.stem}: what was kept is too long, starting again")
        have = _start_again(partial, progress)
    if have == remote.size_bytes:
        return
    with _open(remote, partial, have, progress) as response:
        if have and not _continues(response, remote, partial, have):
            progress.say(
                f"{partial.stem}: the server cannot continue, or the file there changed; "
                "starting again from the first byte"
            )
            have = _start_again(partial, progress)
            if response.status == http.client.PARTIAL_CONTENT:
                raise _ConnectionBroken("another version on the server")
        _check_offer(response, remote, have)
        _remember(partial, remote.url, _version(response))
        with open(partial, "ab") as file:
            _copy(response, file, remote.size_bytes - have, progress)


def _start_again(partial: Path, progress: Progress) -> int:
    """Drop what was fetched; return the number of bytes now there, 0."""
    progress.update(-_size(partial))
    _forget(partial)
    return 0


def _open(remote: RemoteFile, partial: Path, have: int, progress: Progress) -> Any:
    """Ask for the file, or for its rest; return the response."""
    request = urllib.request.Request(remote.url, headers={"Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        known = _remembered(partial, remote.url)
        if known:
            request.add_header("If-Range", known)
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_SEC)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            _start_again(partial, progress)
            raise _ConnectionBroken("the server has no such range") from error
        if error.code in _WORTH_RETRYING:
            raise _ConnectionBroken(f"the server answered {error.code}") from error
        raise ConnectionError(
            f"{remote.url}: the server answered {error.code} {error.reason}; check --mirror"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionBroken(f"cannot connect ({error})") from error


def _continues(response: Any, remote: RemoteFile, partial: Path, have: int) -> bool:
    """Whether the response holds the same file from byte `have` on."""
    if response.status != http.client.PARTIAL_CONTENT:
        return False
    start = str(response.headers.get("Content-Range", "")).removeprefix("bytes ").split("-")[0]
    known = _remembered(partial, remote.url)
    offered = _version(response)
    # Some servers ignore If-Range.
    is_same = not known or not offered or known == offered
    return start.strip() == str(have) and is_same


def _check_offer(response: Any, remote: RemoteFile, have: int) -> None:
    """Refuse another file before gigabytes of it are fetched."""
    length = response.headers.get("Content-Length")
    if length is not None and have + int(length) != remote.size_bytes:
        raise ValueError(
            f"{remote.url}: expected a file of {remote.size_bytes} bytes, the server offers "
            f"{have + int(length)}; check --mirror"
        )


def _copy(response: Any, file: IO[bytes], missing: int, progress: Progress) -> None:
    while missing:
        try:
            chunk = response.read1(min(_CHUNK_BYTES, missing))
        except (OSError, http.client.HTTPException) as error:
            raise _ConnectionBroken(f"the connection broke ({error})") from error
        if not chunk:
            raise _ConnectionBroken("the connection broke off")
        # Outside of the try: a full disk is not the server's fault.
        file.write(chunk)
        missing -= len(chunk)
        progress.update(len(chunk))


def _version(response: Any) -> str:
    """What names this version of the file for `If-Range`: a strong ETag, or the date."""
    tag = str(response.headers.get("ETag", ""))
    if tag and not tag.startswith("W/"):
        return tag
    return str(response.headers.get("Last-Modified", ""))


def _notes(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _remember(partial: Path, url: str, version: str) -> None:
    _notes(partial).write_text(json.dumps({"url": url, "version": version}) + "\n")


def _remembered(partial: Path, url: str) -> str:
    """The version that was being fetched from this URL, or "" if that is not known."""
    try:
        notes = json.loads(_notes(partial).read_text())
        return str(notes["version"]) if notes["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _notes(partial).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
