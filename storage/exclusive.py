"""One at a time: whoever writes a store's metadata, or drops shards, holds claims on them."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from storage.claims import Claims, live_claims
from storage.errors import CacheError, StoreAccessError
from storage.keeper import Keeper
from storage.layout import claim_folder
from storage.location import Location
from storage.schema import ShardId

logger = logging.getLogger(__name__)

METADATA = ShardId("metadata", 0)

# A job that dies while it writes metadata holds the others up this long.
_LEASE_SEC = 30.0
_PAUSE_SEC = 0.2
_SAY_EVERY_SEC = 10.0
# Takes in a row, a pause between them, that may fail without a holder in sight: one who has just
# released is not seen either. Not a time, of which a store that is away may take any.
_UNSEEN_TAKES = 200


@contextmanager
def claimed_metadata(location: Location) -> Iterator[None]:
    """Wait until nobody else writes a store's metadata, and keep others from it.

    What was read before has to be read again inside: it may be out of date.
    """
    with claimed(location, [METADATA]):
        yield


@contextmanager
def claimed(location: Location, shards: Sequence[ShardId]) -> Iterator[Claims]:
    """Wait until nobody else works on some shards, or `METADATA`, and keep others from them.

    Not thousands at once: to prolong each claim takes requests, and all of them have to be in time.

    Raises:
        StoreAccessError: the store does not list the claims that are written to it.
    """
    claims = Claims(location)
    owner = f"{socket.gethostname()} {os.getpid()}"
    held: list[ShardId] = []

    def renew() -> None:
        for shard in list(held):
            try:
                if not claims.take(shard, owner, _LEASE_SEC):
                    logger.warning("%s: another job has taken over %s meanwhile", location, shard)
            except (CacheError, OSError) as error:
                logger.warning("could not renew the claim on %s: %s", shard, error)

    keeper = Keeper(renew, every_sec=_LEASE_SEC / 3, name=f"claims on {location}")
    keeper.start()
    try:
        for shard in shards:
            _wait_for(claims, location, shard, owner)
            held.append(shard)
        yield claims
    finally:
        keeper.stop()
        for shard in held:
            claims.release(shard)


def _wait_for(claims: Claims, location: Location, shard: ShardId, owner: str) -> None:
    said, unseen = -_SAY_EVERY_SEC, 0
    while not claims.take(shard, owner, _LEASE_SEC):
        holder = claims.current(shard)
        unseen = unseen + 1 if holder is None else 0
        if unseen >= _UNSEEN_TAKES:
            raise StoreAccessError(
                f"{location}/{claim_folder(shard)}: a claim that was written is not listed, after"
                f" {unseen} attempts; a store has to list what was written, at once and by the same"
                " name: see what lies between it and this machine, such as a gateway, or choose"
                " another location"
            )
        if holder is not None and time.monotonic() - said >= _SAY_EVERY_SEC:
            said = time.monotonic()
            what = (
                "the metadata, which another job writes" if shard == METADATA else f"shard {shard}"
            )
            logger.warning("%s: waiting for %s: held by %s", location, what, holder)
        time.sleep(_PAUSE_SEC)


def refuse_work_in_progress(location: Location) -> None:
    """Raise a `CacheError` if a dump is at work; the claim on the metadata is the caller's own."""
    for name, claim in live_claims(location):
        if name != str(METADATA):
            raise CacheError(
                f"{location}: a dump is at work ({name} is held by {claim}); stop it first, or wait"
            )
