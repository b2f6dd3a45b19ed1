"""Claims: who is working on which shard, so that several ranks can share one dump.

Claims lie in `claims/<bucket>/<number>/<generation>.json`. The highest generation holds. A free
shard is taken by creating generation 0, an expired claim by creating the next one; both only if
the key is absent, so exactly one of several contenders gets it. Clocks of the machines must agree
to within half of the time that a claim is given.

In an object store every step is a request, so no look precedes what a creation answers by itself:
taking a free shard costs two requests, prolonging a claim three, giving it back one.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from storage import canonical
from storage.errors import FormatError
from storage.layout import CLAIMS, claim_folder
from storage.location import Location
from storage.schema import ShardId

# The longest time that a claim is given.
MAX_LEASE_SEC = 60.0
_MAX_AHEAD_SEC = 1.5 * MAX_LEASE_SEC

_KEY = re.compile(rf"{CLAIMS}/([0-9a-z]+/[0-9]{{5,12}})/([0-9]{{6,12}})\.json", re.ASCII)
_MAX_BYTES = 1 << 12


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a claim says. `str` tells people whose it is, and until when.

    Attributes:
        generation: its number.
        owner: who holds it. token: tells owners of one name apart; "" for what is no claim.
        expires: seconds since 1970.
    """

    generation: int
    owner: str
    token: str
    expires: float

    def __str__(self) -> str:
        until = time.strftime("%H:%M:%S", time.localtime(self.expires))
        return f"{self.owner} until {until} (for {max(0.0, self.expires - time.time()):.0f} s)"

    @property
    def ended(self) -> bool:
        """Whether others may take it over."""
        now = time.time()
        return not now < self.expires <= now + _MAX_AHEAD_SEC  # NaN ends as well


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A claim that this writer made: its number, when it ends, and what it was made with."""

    generation: int
    expires: float
    owner: str
    seconds: float

    def runs(self, margin: float = 0.0) -> bool:
        """Whether the claim still runs, for a part `margin` of its time at least."""
        return self.expires - time.time() > margin * self.seconds


class Claims:
    """The claims of one writer on the shards of one store. Threads may share them."""

    def __init__(self, location: Location) -> None:
        self._location = location
        # Owners may share a name (a job and its restart); the token tells them apart.
        self._token = uuid.uuid4().hex
        self._mine: dict[ShardId, _Held] = {}
        # One thread may prolong a claim while another asks whether it still holds.
        self._lock = threading.RLock()

    def take(self, shard: ShardId, owner: str, seconds: float) -> bool:
        """Take a shard, or prolong the claim on it.

        Returns:
            False if somebody else holds it.

        Raises:
            ValueError: for longer than any claim is given.
        """
        if not 0 <= seconds <= MAX_LEASE_SEC:
            raise ValueError(f"claim: got {seconds} seconds, expected 0 to {MAX_LEASE_SEC:.0f}")
        with self._lock:
            mine = self._mine.get(shard)
            if mine is None or mine.runs():
                generation = 0 if mine is None else mine.generation + 1
                if self._create(shard, generation, owner, seconds):
                    return True
            held = self.current(shard)
            if held is not None and held.token != self._token and not held.ended:
                return False
            return self._create(shard, 0 if held is None else held.generation + 1, owner, seconds)

    def holds(self, shard: ShardId, *, look: bool = True) -> bool:
        """Return whether this writer may commit a shard; prolongs a claim that has run out.

        A writer that never claimed the shard may commit it while nobody else holds a claim.

        Args:
            shard: which one.
            look: whether to look into the store even if, by the clock, nobody can have taken the
                claim over yet.
        """
        with self._lock:
            mine = self._mine.get(shard)
            if mine is not None and not look and mine.runs(margin=0.5):
                return True
            if mine is not None and mine.runs():
                return max(self._generations(shard), default=-1) == mine.generation
            held = self.current(shard)
            if mine is None:
                return held is None or held.ended
            if held is None or held.token != self._token:
                return False
            return self.take(shard, mine.owner, mine.seconds)

    def release(self, shard: ShardId) -> None:
        """Give up a claim; nothing happens if it is not held."""
        with self._lock:
            mine = self._mine.pop(shard, None)
            if mine is None:
                return
            if not mine.runs():
                held = self.current(shard)
                stated = None if held is None else (held.generation, held.token)
                if stated != (mine.generation, self._token):
                    return
            self._location.delete(_key(shard, mine.generation))

    def _create(self, shard: ShardId, generation: int, owner: str, seconds: float) -> bool:
        expires = time.time() + seconds
        value = {"owner": owner, "token": self._token, "expires": expires}
        key = _key(shard, generation)
        if not self._location.put_if_absent(key, json.dumps(value).encode()):
            return False
        # A lower one than another's may have been free: he prolonged his, or had just released it
        # when this one was chosen.
        there = self._generations(shard)
        if max(there, default=-1) != generation:
            self._location.delete(key)
            return False
        self._mine[shard] = _Held(
            generation=generation, expires=expires, owner=owner, seconds=seconds
        )
        self._location.delete_many([_key(shard, one) for one in there if one < generation])
        return True

    def current(self, shard: ShardId) -> Claim | None:
        """Return the claim that holds, ended or not; None if there is none."""
        for generation in sorted(self._generations(shard), reverse=True):
            key = _key(shard, generation)
            raw = self._location.try_ranges([(key, 0, _MAX_BYTES)])[0]
            if raw is not None:  # else released since
                return _parse(raw, generation)
        return None

    def _generations(self, shard: ShardId) -> list[int]:
        """Numbers of the claims, and of whatever lies in the place of one."""
        folder = claim_folder(shard)
        listing = self._location.listing(folder)
        keys = (*listing.sizes, *listing.odd, *listing.unreadable)
        names = {key.removeprefix(f"{folder}/").partition("/")[0] for key in keys}
        found = (_KEY.fullmatch(f"{folder}/{name}") for name in names)
        numbers = [int(match[2]) for match in found if match]
        return [number for number in numbers if _key(shard, number).rpartition("/")[2] in names]


def live_claims(location: Location) -> Iterator[tuple[str, Claim]]:
    """Yield every claim of a store that has not ended, with the folder and number it is about."""
    for key in location.listing(CLAIMS).sizes:
        match = _KEY.fullmatch(key)
        raw = location.try_ranges([(key, 0, _MAX_BYTES)])[0] if match else None
        if match and raw is not None and not (claim := _parse(raw, int(match[2]))).ended:
            yield match[1], claim


def _parse(raw: object, generation: int) -> Claim:
    """Read a claim; what is none is as good as expired, and so is what cannot be read."""
    claim = Claim(generation=generation, owner="somebody", token="", expires=0.0)
    try:
        value: Any = canonical.load(bytes(raw), "claim") if isinstance(raw, memoryview) else None
        owner, token, expires = value["owner"], value["token"], float(value["expires"])
    except (FormatError, KeyError, OverflowError, TypeError, ValueError):
        return claim
    if not (isinstance(owner, str) and isinstance(token, str)):
        return claim
    shown = owner[:100] if owner.isprintable() else ascii(owner[:100])
    return Claim(generation=generation, owner=shown, token=token, expires=expires)


def _key(shard: ShardId, generation: int) -> str:
    return f"{claim_folder(shard)}/{generation:06d}.json"
