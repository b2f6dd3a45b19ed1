"""Requests to an asynchronous store: many at once, and what went wrong with one in a few words.

The client repeats a failed request for some seconds by itself. What it says when it gives up has
many lines, and may quote the server's answer with an access key in it: only the status and the
server's error code are taken from it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import Buffer, default_buffer_prototype

from storage.environment import check_environment, explained

if TYPE_CHECKING:
    from obstore.store import RetryConfig

Result = TypeVar("Result")

# At most so many requests of one call are under way; it also bounds the memory of a large one.
CONCURRENCY = 32
NO_RETRIES: RetryConfig = {"max_retries": 0}
ONCE_SEC = 10.0
RETRIES: RetryConfig = {"max_retries": 10, "retry_timeout": timedelta(seconds=60)}

_STATUS = re.compile(r"status code: (\d{3})([A-Za-z ]*)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_SYSTEM = re.compile(r'message: "([^"<]{1,80})"')
_TIMED_OUT = "kind: Timeout"
# Of an answer without its end, or a request that the server stopped reading.
_BROKEN_OFF = "request or response body error"
_BEHIND_THE_END, _FULL = 416, 507
# Statuses that say "not now" rather than "not so".
_PASSING = (408, 429, 500, 502, 503, 504)
# S3 says 400 of these, where others say 403.
_OF_TOKENS = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
_REMEDIES = {
    0: "check the endpoint in the environment, and the network",
    401: "check the credentials in the environment",
    403: "check the credentials in the environment, and what they allow",
    404: "check the bucket's name",
}


class RequestError(Exception):
    """A request failed, after the client's own retries.

    Attributes:
        key: of the object, or the folder that was listed; "" for the whole store.
        reason: in one line, with what to do about it, and without anything secret.
        status: HTTP status, 0 if there was no answer.
        may_pass: whether the same request may succeed later.
        is_broken_off: whether there was a connection, and a part of the answer.
    """

    def __init__(self, key: str, error: BaseException) -> None:
        text = str(error)
        status, code = _STATUS.search(text), _CODE.search(text)
        self.key = key
        self.status = int(status[1]) if status else 0
        if status:
            self.reason = f"{status[1]}{status[2]}".strip() + (f" ({code[1]})" if code else "")
            self.may_pass, self.is_broken_off = self.status in _PASSING, False
        else:
            system = _SYSTEM.search(text)
            cause = "timed out" if _TIMED_OUT in text else system[1] if system else ""
            # The last part: those before it hold the request's URL.
            last = text.partition("\n")[0].rpartition(" - ")[2]
            self.reason = last + (f" ({cause})" if cause else "")
            self.may_pass, self.is_broken_off = "HTTP error" in last, _BROKEN_OFF in last
        remedy = _REMEDIES.get(403 if code and code[1] in _OF_TOKENS else self.status)
        if remedy and (status or self.may_pass):
            self.reason += f"; {remedy}"
        super().__init__(self.reason)

    @property
    def is_full(self) -> bool:
        """Whether the server has no space left."""
        return self.status == _FULL


@contextmanager
def named(key: str) -> Iterator[None]:
    """Turn what the client raises about a key into a `RequestError`."""
    try:
        yield
    except Exception as error:
        # A missing bucket is a FileNotFoundError even when an object is put. A panic of the client
        # is an exception of the library that binds it.
        of_client = type(error).__module__.partition(".")[0] in ("obstore", "pyo3_async_runtimes")
        if not of_client and not _STATUS.search(str(error)):
            raise
        # Not chained: the client's text would stand in every traceback.
        raise RequestError(key, error) from None


def connect(url: str, retries: RetryConfig | None = None) -> Store:
    """Return a store of a URL, its client made of the environment; no request is made.

    Args:
        url: of a known scheme.
        retries: how often the client asks again; None: for as long as a job does.

    Raises:
        ModuleNotFoundError: the extra `s3` is not installed.
        ValueError: a variable of the environment is wrong; names it, and not its value.
        RequestError: the client cannot be made for another reason.
    """
    try:
        from obstore.store import from_url
        from zarr.storage import ObjectStore
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{url}: object stores need the extra 's3' (obstore is not installed)"
        ) from error
    scheme = url.partition("://")[0]
    check_environment(scheme, os.environ)
    try:
        with named(""):
            return ObjectStore(from_url(url, retry_config=retries or RETRIES))
    except RequestError as error:
        if reason := explained(error.reason, scheme, os.environ):
            raise ValueError(f"{url}: {reason}") from None
        raise


async def reach(store: Store, within_sec: float | None = None) -> None:
    """Ask for the beginning of a listing: of a bucket that is not there, there is none.

    Args:
        store: which.
        within_sec: how long to wait for an answer; None: for as long as the client does. Not one of
            the client's options: they would replace those of the environment.
    """
    client = getattr(store, "store", None)
    if client is not None:
        import obstore

        try:
            async with asyncio.timeout(within_sec) as limit:
                with named(""):
                    async for _ in obstore.list(client, chunk_size=1):
                        return
        except TimeoutError:
            if not limit.expired():
                raise  # the client's own
            late = TimeoutError(f"HTTP error: no answer within {within_sec:g} s")
            raise RequestError("", late) from None


async def get_ranges(
    store: Store, ranges: Sequence[tuple[str, int, int | None]]
) -> list[memoryview | None]:
    """Read (key, start, end) each, an end of None meaning the object's; None where it is absent."""
    prototype = default_buffer_prototype()

    async def get(key: str, start: int, end: int | None) -> memoryview | None:
        wanted = None if end is None else RangeByteRequest(start, end)
        try:
            with named(key):
                return _view(await store.get(key, prototype, wanted))
        except RequestError as error:
            # Object stores refuse a range that begins behind the end; a file gives nothing there.
            if error.status == _BEHIND_THE_END:
                return memoryview(b"")
            raise

    return await _gather(get(*one) for one in ranges)


async def put_many(store: Store, objects: Mapping[str, bytes | memoryview]) -> None:
    """Set objects."""
    buffer = default_buffer_prototype().buffer

    async def put(key: str, data: bytes | memoryview) -> None:
        with named(key):
            await store.set(key, buffer.from_bytes(data))

    await _gather(put(key, data) for key, data in objects.items())


async def create(store: Store, key: str, data: bytes) -> bool:
    """Set an object unless it is there; return whether `data` is what is there now."""
    client = getattr(store, "store", None)
    with named(key):
        if client is None:
            await store.set_if_not_exists(key, default_buffer_prototype().buffer.from_bytes(data))
        else:  # an ObjectStore: zarr would not say whether the object was there
            import obstore

            try:
                await obstore.put_async(client, key, data, mode="create")
                return True
            except obstore.exceptions.AlreadyExistsError:
                pass
    # It may be ours: the client asks again when the answer to its first request was lost.
    (found,) = await get_ranges(store, [(key, 0, None)])
    return found is not None and bytes(found) == data


async def delete_many(store: Store, keys: Sequence[str]) -> None:
    """Remove those objects that are there."""

    async def delete(key: str) -> None:
        with named(key):
            await store.delete(key)

    await _gather(delete(key) for key in keys)


async def size(store: Store, key: str) -> int | None:
    """Return an object's size in bytes, None if it is absent."""
    with named(key):
        try:
            return await store.getsize(key)
        except FileNotFoundError:
            return None


async def sizes(store: Store, folder: str) -> dict[str, int]:
    """Return key and size of every object under a folder ("" for all)."""
    prefix = f"{folder}/" if folder else ""
    client = getattr(store, "store", None)
    with named(folder):
        if client is not None:  # an ObjectStore: its listing knows the sizes, getsize asks again
            import obstore

            listed = await obstore.list(client, prefix=prefix or None).collect_async()
            return {str(one["path"]): int(one["size"]) for one in listed}
        keys = [key async for key in store.list_prefix(prefix)]
        return {key: await store.getsize(key) for key in keys}


async def _gather(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    limit = asyncio.Semaphore(CONCURRENCY)

    async def limited(work: Coroutine[Any, Any, Result]) -> Result:
        async with limit:
            return await work

    return list(await asyncio.gather(*(limited(work) for work in works)))


def _view(buffer: Buffer | None) -> memoryview | None:
    # Not to_bytes(), which copies.
    return None if buffer is None else buffer.as_numpy_array().data.cast("B")
