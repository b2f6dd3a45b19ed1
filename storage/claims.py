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
import threading
import time
import uuid
from dataclasses import dataclass

from storage.layout import claim_folder
from storage.location import Location
from storage.schema import ShardId


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
        """
        with self._lock:
            mine = self._mine.get(shard)
            if mine is None or mine.runs():
                generation = 0 if mine is None else mine.generation + 1
                if self._create(shard, generation, owner, seconds):
                    return True
            held = self._current(shard)
            if held is not None:
                _, token, expires = held
                if token != self._token and expires > time.time():
                    return False
            return self._create(shard, 0 if held is None else held[0] + 1, owner, seconds)

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
            held = self._current(shard)
            if mine is None:
                return held is None or held[2] <= time.time()
            if held is None or held[1] != self._token:
                return False
            return self.take(shard, mine.owner, mine.seconds)

    def release(self, shard: ShardId) -> None:
        """Give up a claim; nothing happens if it is not held."""
        with self._lock:
            mine = self._mine.pop(shard, None)
            if mine is None:
                return
            if not mine.runs():
                held = self._current(shard)
                if held is None or held[:2] != (mine.generation, self._token):
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

    def _current(self, shard: ShardId) -> tuple[int, str, float] | None:
        """Return generation, token and expiry of the claim that holds, or None."""
        for generation in sorted(self._generations(shard), reverse=True):
            raw = self._location.get(_key(shard, generation))
            if raw is None:  # released since
                continue
            try:
                value = json.loads(raw)
                return generation, str(value["token"]), float(value["expires"])
            except (ValueError, KeyError, TypeError):
                return generation, "", 0.0  # unreadable: as good as expired
        return None

    def _generations(self, shard: ShardId) -> list[int]:
        names = (key.rpartition("/")[2] for key in self._location.sizes(claim_folder(shard)))
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return [int(stem) for stem in stems if stem.isdecimal()]


def _key(shard: ShardId, generation: int) -> str:
    return f"{claim_folder(shard)}/{generation:06d}.json"
