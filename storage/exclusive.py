"""One at a time: whoever writes a store's metadata holds a claim on it, as on a shard."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from storage.claims import Claims, live_claims
from storage.errors import CacheError
from storage.keeper import Keeper
from storage.location import Location
from storage.schema import ShardId

logger = logging.getLogger(__name__)

METADATA = ShardId("metadata", 0)

# A job that dies while it writes metadata holds the others up this long.
_LEASE_SEC = 30.0
_PAUSE_SEC = 0.2
_SAY_EVERY_SEC = 10.0


@contextmanager
def claimed_metadata(location: Location) -> Iterator[None]:
    """Wait until nobody else writes a store's metadata, and keep others from it.

    What was read before has to be read again inside: it may be out of date.
    """
    claims = Claims(location)
    owner = f"{socket.gethostname()} {os.getpid()}"

    def take() -> bool:
        return claims.take(METADATA, owner, _LEASE_SEC)

    said = -_SAY_EVERY_SEC
    while not take():
        holder = claims.current(METADATA)
        if holder is not None and time.monotonic() - said >= _SAY_EVERY_SEC:
            said = time.monotonic()
            logger.warning(
                "%s: waiting for the metadata, which another job writes: held by %s",
                location, holder,
            )  # fmt: skip
        time.sleep(_PAUSE_SEC)
    keeper = Keeper(take, every_sec=_LEASE_SEC / 3, name="metadata claim")
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()
        claims.release(METADATA)


def refuse_work_in_progress(location: Location) -> None:
    """Raise a `CacheError` if a dump is at work; the claim on the metadata is the caller's own."""
    for name, claim in live_claims(location):
        if name != str(METADATA):
            raise CacheError(
                f"{location}: a dump is at work ({name} is held by {claim}); stop it first, or wait"
            )
