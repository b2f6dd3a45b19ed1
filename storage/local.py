"""Files of a local store: read without an event loop, listed, and told from what is no file.

Anything may lie where a file should: a folder, a FIFO, a device, a link to itself. Opening must not
wait for a writer, so all files are opened without blocking and looked at before they are read.
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from errno import ELOOP, ENXIO
from functools import cache
from pathlib import Path

import numpy as np

PARTIAL_SUFFIX = ".partial"
FOLDER = "a folder"

# What says that there is nothing at a path, whatever lies above it.
_ABSENT = (FileNotFoundError, NotADirectoryError)
_OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
_DELETED_AT_ONCE = 16
_WRITTEN_AGAIN = 3


class NotAFileError(OSError):
    """Something else than a regular file lies at a path; the message says what."""


@dataclass(frozen=True)
class Listing:
    """What lies under a folder.

    Attributes:
        sizes: key to size in bytes of every file.
        odd: key of what is no file to what it is: "a FIFO"; an empty folder is one, too.
        unreadable: key of what cannot be looked at, to the reason.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def read_range(path: str, start: int, end: int) -> memoryview | None:
    """Read a range of a file, cut at its end, into memory of its own (and so writable).

    Returns:
        The bytes; None if there is nothing.

    Raises:
        NotAFileError: something else lies there.
        OSError: it cannot be read.
    """
    opened = _open(path)
    if opened is None:
        return None
    file, size = opened
    try:
        count = max(0, min(end, size) - start)
        # numpy asks for huge pages: touching fresh memory takes as long as reading it.
        data = np.empty(count, dtype=np.uint8).data
        done = 0
        # One read, but for more than 2 GiB or a file that is cut short at this moment.
        while done < count and (read := os.preadv(file, [data[done:]], start + done)):
            done += read
        return data[:done]
    finally:
        os.close(file)


def read_blocks(path: str, block: int) -> Iterator[memoryview]:
    """Yield a file block by block, each valid until the next; raises as `read_range`."""
    opened = _open(path)
    if opened is None:
        return
    file, size = opened
    start = 0
    try:
        # One buffer for all blocks: fresh memory for each takes as long as reading it.
        buffer = memoryview(bytearray(max(1, min(block, size))))
        while count := os.preadv(file, [buffer], start):
            yield buffer[:count]
            start += count
    finally:
        os.close(file)


def size_of(path: str) -> int | None:
    """Return the size of a file in bytes, None if there is nothing; raises as `read_range`."""
    try:
        found = os.stat(path)
    except OSError as error:
        if _is_absent(path, error):
            return None
        raise
    if not stat.S_ISREG(found.st_mode):
        raise NotAFileError(_what(found.st_mode))
    return found.st_size


def free_bytes(path: Path) -> int:
    """Return the free space of the disk that something lies, or would lie, on."""
    there = next(one for one in (path, *path.parents) if one.exists())
    return shutil.disk_usage(there).free


def create(path: str, data: bytes) -> bool:
    """Create a file in one step; return False if anything lies there already."""
    unfinished = _unfinished(path)
    try:
        unfinished.write_bytes(data)
        os.link(unfinished, path)
    except FileExistsError:
        return False
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return True


def write_blocks(path: str, blocks: Iterable[bytes | memoryview]) -> None:
    """Set a file in one step, from where its bytes lie.

    An error of the blocks leaves what was there.
    """
    again = 0 if iter(blocks) is blocks else _WRITTEN_AGAIN
    for _ in range(again):
        try:
            return _replace(path, blocks)
        except FileNotFoundError:
            # Another writer took our unfinished file for one that a crash had left.
            continue
    _replace(path, blocks)


def _replace(path: str, blocks: Iterable[bytes | memoryview]) -> None:
    unfinished = _unfinished(path)
    try:
        with unfinished.open("wb") as file:
            for block in blocks:
                file.write(block)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _unfinished(path: str) -> Path:
    """A name beside a path, in a folder that is there now."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Named as zarr names its unfinished files, so that they are swept up together.
    return Path(path).with_suffix(f".{uuid.uuid4().hex}{PARTIAL_SUFFIX}")


def sync(files: Sequence[Path], folders: Iterable[Path]) -> None:
    """Force files to the disk, and then the folders that name them.

    Files side by side. Folders one by one: with the first of them the file system writes its
    journal for all, and threads for the others take longer than they.
    """
    for _ in _syncing().map(_fsync, files) if len(files) > 1 else map(_fsync, files):
        pass
    for folder in folders:
        _fsync(folder)


@cache
def _syncing() -> ThreadPoolExecutor:
    """The threads that force files to the disk, for all writers of this process.

    To start some for each shard took writers that run side by side more time than anything else.
    """
    return ThreadPoolExecutor(8, thread_name_prefix="sync")


# A forked process has none of its parent's threads.
os.register_at_fork(after_in_child=_syncing.cache_clear)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unfinished_of(path: str) -> list[str]:
    """Return the unfinished files that a killed writer has left beside a path."""
    folder, name = os.path.split(path)
    begin = f"{name.partition('.')[0]}."
    try:
        names = os.listdir(folder)
    except _ABSENT:
        return []
    found = (one for one in names if one.startswith(begin) and one.endswith(PARTIAL_SUFFIX))
    return [f"{folder}/{one}" for one in found]


def delete_many(paths: Sequence[str]) -> None:
    """Remove what lies at each path: a file, a folder with all that is in it, anything."""
    if len(paths) <= _DELETED_AT_ONCE:
        for path in paths:
            _delete(path)
        return
    with ThreadPoolExecutor(_DELETED_AT_ONCE) as pool:  # on a network disk each is a round trip
        list(pool.map(_delete, paths))


def obstacle(root: str, key: str) -> tuple[str, str] | None:
    """Say what keeps a file from being put at a key: what it is, and its own key; None if none."""
    parts = key.split("/")
    for depth in range(len(parts) + 1):
        inner = "/".join(parts[:depth])
        path = f"{root}/{inner}" if inner else root
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            if os.path.lexists(path) and depth < len(parts):
                return _bad_link(error), inner
            return None
        if stat.S_ISDIR(mode) != (depth < len(parts)):
            return _what(mode), inner
    return None


def walk(path: str, key: str) -> Listing:
    """List everything under a folder; of links that lead back to a folder above, just the link.

    Args:
        path: of the folder.
        key: that `path` has in the store; "" for the store itself.
    """
    found = Listing()
    left = [(path, key)]
    while left:
        folder, name = left.pop()
        try:
            entries = list(os.scandir(folder))
        except _ABSENT:
            continue
        except OSError as error:
            found.unreadable[name] = f"cannot be listed ({error.strerror})"
            continue
        if not entries and name != key:
            found.odd[name] = FOLDER
        for entry in entries:
            inner = f"{name}/{entry.name}" if name else entry.name
            if _note(entry, inner, found):
                left.append((entry.path, inner))
    return found


def _note(entry: os.DirEntry[str], key: str, found: Listing) -> bool:
    """Note an entry of a folder; return whether it is a folder to be listed."""
    if entry.is_dir(follow_symlinks=False):
        return True  # known without a request to the disk, as most entries are folders
    try:
        mode = entry.stat().st_mode
    except FileNotFoundError as error:
        if entry.is_symlink():
            found.odd[key] = _bad_link(error)
        return False  # else a writer at work has just renamed or removed it
    except OSError as error:
        if error.errno == ELOOP:
            found.odd[key] = _bad_link(error)
        else:
            found.unreadable[key] = f"cannot be read ({error.strerror})"
        return False
    if stat.S_ISDIR(mode):
        if _leads_back(entry.path):
            found.odd[key] = "a link to a folder above it"
            return False
        return True
    if stat.S_ISREG(mode):
        found.sizes[key] = entry.stat().st_size
    else:
        found.odd[key] = _what(mode)
    return False


def _leads_back(path: str) -> bool:
    target = os.stat(path)
    return any(os.path.samestat(target, os.stat(above)) for above in Path(path).parents)


def _open(path: str) -> tuple[int, int] | None:
    """Open a file; return its descriptor and its size."""
    try:
        file = os.open(path, _OPEN)
    except OSError as error:
        if error.errno == ENXIO:  # a socket, or a device without a driver
            raise NotAFileError(_what(os.stat(path).st_mode)) from error
        if _is_absent(path, error):
            return None
        raise
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        os.close(file)
        raise NotAFileError(_what(found.st_mode))
    return file, found.st_size


def _is_absent(path: str, error: OSError) -> bool:
    """Return whether an error means that nothing is there.

    Raises:
        NotAFileError: a link to itself is there.
    """
    if error.errno == ELOOP:
        if os.path.islink(path):
            raise NotAFileError(_bad_link(error)) from error
        return True  # the link is a folder above it
    return isinstance(error, _ABSENT)


def _delete(path: str) -> None:
    try:
        os.unlink(path)
    except _ABSENT:
        return
    except OSError as error:
        if error.errno == ELOOP:
            return  # nothing can lie below a link to itself
        if not os.path.isdir(path) or os.path.islink(path):
            raise
        shutil.rmtree(path)


def _bad_link(error: OSError) -> str:
    return "a link to itself" if error.errno == ELOOP else "a link to nothing"


def _what(mode: int) -> str:
    kinds = {
        stat.S_IFREG: "a file", stat.S_IFDIR: FOLDER, stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "no file")
