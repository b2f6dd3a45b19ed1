"""Where a store lives: a local folder or an object-store prefix, behind one synchronous interface.

Local files are read without an event loop, so that readers work in forked and spawned workers
alike. Everything else goes through zarr's `Store`, object stores in one event loop; a store that
has answered before may be away for some minutes.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from zarr.abc.store import Store
from zarr.storage import LocalStore

from storage import event_loop, local, remote
from storage.errors import ForkedProcessError, StoreAccessError, UnreadableError
from storage.local import PARTIAL_SUFFIX as PARTIAL_SUFFIX
from storage.local import Listing
from storage.local_errors import store_full, unreadable, unwritable
from storage.schema import check_key
from storage.urls import is_spoilt_url, is_url

logger = logging.getLogger(__name__)

Range = tuple[str, int, int]
Result = TypeVar("Result")

# A file is read fastest in blocks that fit a cache. Of an object store each block is a request, and
# after the first, which is all of most objects, several are under way at once.
LOCAL_BLOCK = 1 << 19
REMOTE_BLOCK = 1 << 23
REMOTE_BLOCKS_AT_ONCE = 4

# How long a job waits for an object store that it has reached before, or whose first answer broke
# off. One that was never reached is more likely misconfigured: that is said as soon as the client's
# own retries end.
PATIENCE_SEC = 300.0
_PAUSE_SEC = 1.0


class Location:
    """One store's place. Picklable; the zarr store behind it is opened on first use.

    A text may be a URL, a `Path` is always a local folder.

    Attributes:
        name: the local path or the URL, as shown in messages.
        is_local: whether it is a folder of this machine.

    Raises:
        ValueError: see `storage.urls.is_url`.
    """

    def __init__(self, where: str | os.PathLike[str] | Location | Store) -> None:
        self.name: str
        self._store: Store | None = None
        self._given: Store | None = None
        self._path: Path | None = None
        self._reached: bool | None = None  # not asked yet
        if isinstance(where, Location):
            self.name, self._given, self._path = where.name, where._given, where._path
            self._reached = where._reached
        elif isinstance(where, Store):
            self.name, self._given = str(where), where
            self._path = where.root if isinstance(where, LocalStore) else None
        else:
            name = os.fspath(where)
            if not isinstance(where, str) and ":" in name and not is_spoilt_url(name):
                name = os.path.join(".", name)  # also as the text that it is shown as
            self._path = None if is_url(name) else Path(name).absolute()
            self.name = name.rstrip("/") or "/"  # keys follow after a slash

    def __str__(self) -> str:
        return self.name

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

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
            ModuleNotFoundError, ValueError: see `remote.connect`.
        """
        if self._is_remote and event_loop.client_was_forked():
            raise ForkedProcessError(
                f"{self}: the object-store client hangs in a forked process; start workers with"
                " the multiprocessing context 'spawn' or 'forkserver'"
            )
        if self._store is None:
            self._store = self._given or self._open()
        return self._store

    def _open(self) -> Store:
        if self._path is not None:
            return LocalStore(self._path, read_only=True)
        return self._wait(lambda: remote.connect(self.name))

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

        Raises:
            UnreadableError: something else than a file lies at a local key, or it may not be read.
        """
        for key, _, _ in ranges:
            check_key(key)
        if self._path is not None:
            return [self._read_local(*one) for one in ranges]
        asked = [(key, start, None if end == sys.maxsize else end) for key, start, end in ranges]
        return self._ask(lambda: remote.get_ranges(self.store, asked))

    def try_ranges(self, ranges: Sequence[Range]) -> list[memoryview | UnreadableError | None]:
        """As `get_ranges`, but give the error of each object that cannot be read in its place."""
        if self._path is None:
            return list(self.get_ranges(ranges))
        found: list[memoryview | UnreadableError | None] = []
        for one in ranges:
            try:
                found += self.get_ranges([one])
            except UnreadableError as error:
                found.append(error)
        return found

    def _read_local(self, key: str, start: int, end: int) -> memoryview | None:
        try:
            return local.read_range(f"{self._path}/{key}", start, end)
        except OSError as error:
            raise unreadable(str(self), key, error) from error

    def read_blocks(self, key: str, block: int | None = None) -> Iterator[memoryview]:
        """Yield an object's bytes block by block, so that hashing needs little memory.

        A block is valid until the next one is asked for. An absent object has none.
        """
        if self._path is not None:
            try:
                yield from local.read_blocks(f"{self._path}/{check_key(key)}", block or LOCAL_BLOCK)
            except OSError as error:
                raise unreadable(str(self), key, error) from error
            return
        block = block or REMOTE_BLOCK
        start, count = 0, 1
        while True:
            starts = range(start, start + count * block, block)
            for data in self.get_ranges([(key, one, one + block) for one in starts]):
                if data:
                    yield data
                if data is None or len(data) < block:
                    return
            start, count = starts.stop, REMOTE_BLOCKS_AT_ONCE

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, None if there is none; raises as `get_ranges`."""
        check_key(key)
        if self._path is not None:
            try:
                return local.size_of(f"{self._path}/{key}")
            except OSError as error:
                raise unreadable(str(self), key, error) from error
        return self._ask(lambda: remote.size(self.store, key))

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Set an object in one atomic step, from where its bytes lie.

        Raises:
            StoreFullError: no space is left.
            StoreAccessError: it cannot be written for another reason.
        """
        check_key(key)
        if self._path is None:
            return self._ask(lambda: remote.put_many(self.store, {key: data}))
        with self._local_errors(key):
            local.write_blocks(f"{self._path}/{key}", [data])

    def put_many(self, objects: Mapping[str, bytes]) -> None:
        """Set many small objects, at once where that saves round trips. Not atomic as a whole."""
        if self.is_local:
            for key, data in objects.items():
                self.put(key, data)
            return
        for key in objects:
            check_key(key)
        self._ask(lambda: remote.put_many(self.store, objects))

    def put_blocks(self, key: str, blocks: Iterable[bytes | memoryview]) -> None:
        """Set an object in one atomic step, of which a local store never holds more than a block.

        What the blocks raise is raised, and leaves what was there; otherwise as `put`.
        """
        if self._path is None:
            whole = bytearray()
            for block in blocks:  # valid until the next one is asked for
                whole += block
            return self.put(key, memoryview(whole))
        with self._local_errors(key):
            local.write_blocks(f"{self._path}/{check_key(key)}", blocks)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object; return False, and change nothing, if there is one already.

        Two callers that put the same bytes at the same time may both hear True.
        """
        check_key(key)
        if self._path is None:
            return self._ask(lambda: remote.create(self.store, key, data))
        with self._local_errors(key):
            if local.create(f"{self._path}/{key}", data):
                return True
        found = self.try_ranges([(key, 0, len(data) + 1)])[0]
        return isinstance(found, memoryview) and bytes(found) == data

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        self.delete_many([key])

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove those objects that are there, and locally whatever else lies in their place."""
        for key in keys:
            _check_inside(key)
        if self._path is None:
            return self._ask(lambda: remote.delete_many(self.store, keys))
        with self._local_errors(keys[0] if keys else ""):
            local.delete_many([f"{self._path}/{key}" for key in keys])

    def sweep(self, keys: Sequence[str]) -> None:
        """Remove what killed writers have left of objects that they did not finish; locally alone.

        Looks at names alone: a folder of commits has one for each shard.
        """
        if self._path is None:
            return
        with self._local_errors(keys[0] if keys else ""):
            for key in keys:
                local.delete_many(local.unfinished_of(f"{self._path}/{check_key(key)}"))

    def sync(self, keys: Sequence[str]) -> None:
        """Force objects, and the folders that name them, to the disk. Local folders only."""
        if self._path is None:
            return
        files = [self._path / check_key(key) for key in keys]
        depth = len(self._path.parts)
        folders = {folder for file in files for folder in file.parents[: len(file.parts) - depth]}
        with self._local_errors(keys[0] if keys else ""):
            local.sync(files, folders)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return key and size in bytes of every object under a folder ("" for all).

        Raises:
            StoreAccessError: some of it cannot be listed.
        """
        found = self.listing(folder)
        if found.unreadable:
            key, reason = next(iter(found.unreadable.items()))
            raise StoreAccessError(f"{self}/{key}: {reason}; make it readable, and run again")
        return found.sizes

    def listing(self, folder: str = "") -> Listing:
        """Return all that lies under a folder ("" for all), also what is no object of a store."""
        if folder:
            check_key(folder)
        if self._path is not None:
            return local.walk(str(self._path / folder), folder)
        return Listing(self._ask(lambda: remote.sizes(self.store, folder)))

    def reach(self, *, once: bool = False) -> None:
        """See that there is a bucket; nothing happens with a local folder.

        Args:
            once: ask a single time, for some seconds, where nobody wants to wait for a network.

        Raises:
            StoreAccessError: it is not there, or cannot be listed.
        """
        if self._path is not None:
            return
        store = self.store
        if not once:
            return self._ask(lambda: remote.reach(store))
        if self._given is None:
            store = self._wait(lambda: remote.connect(self.name, remote.NO_RETRIES))
        self._ask(lambda: remote.reach(store, remote.ONCE_SEC), patience_sec=0.0)

    def above(self) -> list[Location]:
        """Return the folders, or prefixes, that this place lies in, the nearest first."""
        if self._path is not None:
            # A link may lead into another store, or lie in one.
            both = (*self._path.parents, *Path(os.path.realpath(self._path)).parents)
            return [Location(one) for one in dict.fromkeys(both)]
        if self._given is not None:
            return []
        bucket, *folders = self.name.split("/")[2:]
        scheme = self.name.partition("://")[0]
        depths = reversed(range(len(folders)))
        return [Location(f"{scheme}://{'/'.join([bucket, *folders[:depth]])}") for depth in depths]

    def free_bytes(self) -> int | None:
        """Return the free space of the disk that a folder lies, or would lie, on; else None."""
        return None if self._path is None else local.free_bytes(self._path)

    def obstacle(self, key: str) -> tuple[str, str] | None:
        """Say what keeps an object from being put at a local key, and where; None if nothing."""
        return None if self._path is None else local.obstacle(str(self._path), key)

    @contextmanager
    def _local_errors(self, key: str) -> Iterator[None]:
        """Turn a disk that takes nothing into an error that names the store and the way out."""
        if self._given is not None and self._given.read_only:
            raise StoreAccessError(f"{self}: was opened to be read only")
        try:
            yield
        except OSError as error:
            raise unwritable(str(self), str(self._path), key, error) from error

    def _ask(
        self, work: Callable[[], Coroutine[Any, Any, Result]], patience_sec: float | None = None
    ) -> Result:
        """Run requests, again and again while a store that has answered before is away.

        All of them give the same result when they are made twice.
        """
        patience_sec = PATIENCE_SEC if patience_sec is None else patience_sec
        result = self._wait(lambda: event_loop.run(work()), patience_sec)
        self._reached = True
        return result

    def _wait(self, attempt: Callable[[], Result], patience_sec: float = 0.0) -> Result:
        deadline = time.monotonic() + patience_sec
        while True:
            try:
                with remote.named(""):
                    return attempt()
            except remote.RequestError as error:
                if error.is_full:
                    raise store_full(str(self), error.key) from None
                place = f"{self}/{error.key}" if error.key else str(self)
                message = f"{place}: the object store failed: {error.reason}"
                left = deadline - time.monotonic()
                has_answered = error.is_broken_off if self._reached is None else self._reached
                if not (has_answered and error.may_pass) or left <= 0:
                    self._reached = False  # what a job does on its way out need not wait again
                    raise StoreAccessError(message) from None
            logger.warning("%s; trying again for %.0f s", message, left)
            time.sleep(_PAUSE_SEC)


def _check_inside(key: str) -> None:
    """Refuse what leads out of the store; what is removed may have any other name."""
    if key.startswith("/") or ".." in key.split("/"):
        check_key(key)
