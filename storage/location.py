"""Where a store lives: a local folder or an object-store prefix, behind one synchronous interface.

Everything goes through zarr's `Store`. Local folders are read with its synchronous methods, so
that readers work in forked and spawned workers alike; object stores through one event loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import LocalStore

from storage import event_loop
from storage.errors import ForkedProcessError, StoreAccessError, StoreFullError
from storage.schema import check_key

if TYPE_CHECKING:
    from obstore.store import RetryConfig

Range = tuple[str, int, int]

URL_SCHEMES = ("s3", "gs", "az")
PARTIAL_SUFFIX = ".partial"

# A file is read fastest in blocks that fit a cache; of an object store, each block is a request.
LOCAL_BLOCK = 1 << 18
REMOTE_BLOCK = 1 << 25

_RETRIES: RetryConfig = {"max_retries": 10, "retry_timeout": timedelta(seconds=60)}
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class Location:
    """One store's place. Picklable; the zarr store behind it is opened on first use.

    Attributes:
        name: the local path or the URL, as shown in messages.
        is_local: whether it is a folder of this machine.

    Raises:
        ValueError: an unknown URL scheme, or a URL with credentials or a query in it.
    """

    def __init__(self, where: str | os.PathLike[str] | Location | Store) -> None:
        self.name: str
        self._store: Store | None = None
        self._writable: Store | None = None
        self._given: Store | None = None
        self._path: Path | None = None
        if isinstance(where, Location):
            self.name, self._given, self._path = where.name, where._given, where._path
        elif isinstance(where, Store):
            self.name, self._given = str(where), where
            self._path = where.root if isinstance(where, LocalStore) else None
        else:
            self.name = os.fspath(where)
            self._path = None if _check_url(self.name) else Path(self.name).absolute()

    def __str__(self) -> str:
        return self.name

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None, "_writable": None}

    @property
    def is_local(self) -> bool:
        return self._path is not None

    @property
    def _is_remote(self) -> bool:
        return self._path is None and (self._given is None or hasattr(self._given, "store"))

    @property
    def store(self) -> Store:
        """The zarr store to read from. A local one is never created by reading.

        Raises:
            ForkedProcessError: an object store in a process forked from one that had its client.
            ModuleNotFoundError: the extra `s3` is not installed.
        """
        if self._is_remote and event_loop.client_was_forked():
            raise ForkedProcessError(
                f"{self}: the object-store client hangs in a forked process; start workers with"
                " the multiprocessing context 'spawn' or 'forkserver'"
            )
        if self._store is None:
            self._store = self._given or self._open()
        return self._store

    @property
    def _writable_store(self) -> Store:
        if self._path is None:
            return self.store
        if self._writable is None:
            self._writable = self._given or LocalStore(self._path)
        return self._writable

    def _open(self) -> Store:
        if self._path is not None:
            return LocalStore(self._path, read_only=True)
        try:
            from obstore.store import from_url
            from zarr.storage import ObjectStore
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{self}: object stores need the extra 's3' (obstore is not installed)"
            ) from error
        with self._errors():
            return ObjectStore(from_url(self.name, retry_config=_RETRIES))

    def get(self, key: str) -> bytes | None:
        """Return an object's bytes, or None if there is none."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes of many objects, None for each that is absent."""
        views = self.get_ranges([(key, 0, sys.maxsize) for key in keys])
        return [None if view is None else bytes(view) for view in views]

    def get_ranges(self, ranges: Sequence[Range]) -> list[memoryview | None]:
        """Read many ranges of objects at once.

        Args:
            ranges: (key, start, end) each; an end of `sys.maxsize` means the whole object.

        Returns:
            The bytes of each range, fewer where the object ends before, None where it is absent.
        """
        for key, _, _ in ranges:
            check_key(key)
        with self._errors():
            if isinstance(self.store, LocalStore):
                return [_get_local(self.store, *one) for one in ranges]
            return event_loop.run(_get_all(self.store, ranges))

    def read_blocks(self, key: str, block: int | None = None) -> Iterator[memoryview]:
        """Yield an object's bytes block by block, so that hashing needs little memory.

        A block is valid until the next one is asked for. An absent object has none.
        """
        if self._path is not None:
            with self._errors():
                yield from _local_blocks(self._path / check_key(key), block or LOCAL_BLOCK)
            return
        block = block or REMOTE_BLOCK
        start = 0
        while True:
            data = self.get_ranges([(key, start, start + block)])[0]
            if data:
                yield data
            if data is None or len(data) < block:
                return
            start += block

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, or None if there is none."""
        with self._errors():
            try:
                if self._path is not None:
                    return (self._path / check_key(key)).stat().st_size
                return int(event_loop.run(self.store.getsize(check_key(key))))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def put(self, key: str, data: bytes) -> None:
        """Set an object in one atomic step.

        Raises:
            StoreFullError: no space is left.
        """
        buffer = default_buffer_prototype().buffer.from_bytes(data)
        with self._errors(key):
            if isinstance(self._writable_store, LocalStore):
                _set_local(self._writable_store, check_key(key), buffer)
            else:
                event_loop.run(self._writable_store.set(check_key(key), buffer))

    def put_many(self, objects: Mapping[str, bytes]) -> None:
        """Set many small objects, at once where that saves round trips. Not atomic as a whole."""
        if self.is_local:
            for key, data in objects.items():
                self.put(key, data)
            return
        with self._errors("many objects"):
            event_loop.run(
                _set_all(
                    self._writable_store, {check_key(key): data for key, data in objects.items()}
                )
            )

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object; return False, and change nothing, if there is one already.

        Two callers that put the same bytes at the same time may both hear True.
        """
        buffer = default_buffer_prototype().buffer.from_bytes(data)
        with self._errors(key):
            event_loop.run(self._writable_store.set_if_not_exists(check_key(key), buffer))
        return self.get(key) == data

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        with self._errors():
            event_loop.run(self._writable_store.delete(check_key(key)))

    def sync(self, keys: Sequence[str]) -> None:
        """Force objects, and the folders that name them, to the disk. Local folders only."""
        if self._path is None:
            return
        files = [self._path / check_key(key) for key in keys]
        depth = len(self._path.parts)
        folders = {folder for file in files for folder in file.parents[: len(file.parts) - depth]}
        # Side by side: the file system then writes its journal once for several of them.
        with self._errors(keys[0] if keys else ""), ThreadPoolExecutor(8) as pool:
            list(pool.map(_fsync, files))
            list(pool.map(_fsync, folders))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return key and size in bytes of every object under a folder ("" for all)."""
        if folder:
            check_key(folder)
        with self._errors():
            if self._path is not None:
                top = str(self._path / folder)
                return dict(_walk(top, folder))
            return event_loop.run(_sizes(self.store, f"{folder}/" if folder else ""))

    @contextmanager
    def _errors(self, key: str = "") -> Iterator[None]:
        """Turn what a store raises into errors that name the store and the way out."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL_DISK:
                raise StoreFullError(
                    f"{self}: no space left while writing {key}; free some and run again:"
                    " committed shards stay and are not done twice"
                ) from error
            raise
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "obstore":
                raise
            reason = str(error).partition("\n")[0]
            raise StoreAccessError(f"{self}: the object store failed: {reason}") from error


def _check_url(name: str) -> bool:
    """Return whether `name` is a URL of a known scheme, refusing all other URLs."""
    scheme, separator, _ = name.partition("://")
    if not separator:
        return False
    if scheme not in URL_SCHEMES:
        choices = ", ".join(f"{one}://" for one in URL_SCHEMES)
        raise ValueError(f"location of scheme {scheme}://: expected a local path, {choices}")
    parts = urlsplit(name)
    if "@" in parts.netloc or parts.query or parts.fragment:
        # The text is not repeated: it would put the secret in a log.
        raise ValueError(
            f"location {scheme}://...: credentials and options do not belong into a URL; set the"
            " provider's environment variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...)"
        )
    if not parts.netloc:
        raise ValueError(f"location {name}: names no bucket")
    return True


def _byte_range(start: int, end: int) -> RangeByteRequest | None:
    return None if end == sys.maxsize else RangeByteRequest(start, end)


def _view(buffer: Buffer | None) -> memoryview | None:
    # Not to_bytes(), which copies.
    return None if buffer is None else buffer.as_numpy_array().data.cast("B")


def _get_local(store: LocalStore, key: str, start: int, end: int) -> memoryview | None:
    try:
        return _view(store.get_sync(key, byte_range=_byte_range(start, end)))
    except FileNotFoundError:  # there is not even the store's folder
        return None


def _local_blocks(path: Path, block: int) -> Iterator[memoryview]:
    """Read a file into one buffer again and again: fresh memory for each block is far slower."""
    view = memoryview(bytearray(block))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(view):
                yield view[:count]
    except (FileNotFoundError, NotADirectoryError):
        return


async def _get_all(store: Store, ranges: Sequence[Range]) -> list[memoryview | None]:
    prototype = default_buffer_prototype()

    async def get(key: str, start: int, end: int) -> memoryview | None:
        try:
            return _view(await store.get(key, prototype, _byte_range(start, end)))
        except Exception:
            # Object stores refuse a range that begins behind the end; a file gives nothing there.
            if start >= await store.getsize(key):
                return memoryview(b"")
            raise

    return list(await asyncio.gather(*(get(*one) for one in ranges)))


def _set_local(store: LocalStore, key: str, buffer: Buffer) -> None:
    for _ in range(3):
        try:
            return store.set_sync(key, buffer)
        except FileNotFoundError:
            # Another writer took our unfinished file for one that a crash had left.
            continue
    store.set_sync(key, buffer)


async def _set_all(store: Store, objects: Mapping[str, bytes]) -> None:
    limit = asyncio.Semaphore(32)
    buffer = default_buffer_prototype().buffer

    async def put(key: str, data: bytes) -> None:
        async with limit:
            await store.set(key, buffer.from_bytes(data))

    await asyncio.gather(*(put(key, data) for key, data in objects.items()))


async def _sizes(store: Store, prefix: str) -> dict[str, int]:
    client = getattr(store, "store", None)
    if client is not None:  # an ObjectStore: its listing knows the sizes, getsize would ask again
        import obstore

        listed = await obstore.list(client, prefix=prefix or None).collect_async()
        return {str(one["path"]): int(one["size"]) for one in listed}
    keys = [key async for key in store.list_prefix(prefix)]
    return {key: await store.getsize(key) for key in keys}


def _walk(path: str, key: str) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(path))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        inner = f"{key}/{entry.name}" if key else entry.name
        try:
            if entry.is_dir():
                yield from _walk(entry.path, inner)
            else:
                yield inner, entry.stat().st_size
        except FileNotFoundError:  # a writer at work has just renamed or removed it
            continue


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
