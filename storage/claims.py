"""Claims: who is working on which shard, so that several ranks can share one dump.

Claims lie in `claims/<bucket>/<number>/<generation>.json`. The highest generation holds. A free
shard is taken by creating generation 0, an expired claim by creating the next one; both only if
the key is absent, so exactly one of several contenders gets it. Clocks of the machines must agree
to within the time that a claim is given.
"""

from __future__ import annotations

import json
import threading
import time
import uuid

from storage.layout import claim_folder
from storage.location import Location
from storage.schema import ShardId


class Claims:
    """The claims of one writer on the shards of one store. Threads may share them."""

    def __init__(self, location: Location) -> None:
        self._location = location
        # Owners may share a name (a job and its restart); the token tells them apart.
        self._token = uuid.uuid4().hex
        self._mine: dict[ShardId, tuple[str, float]] = {}
        # One thread may prolong a claim while another asks whether it still holds.
        self._lock = threading.RLock()

    def take(self, shard: ShardId, owner: str, seconds: float) -> bool:
        """Take a shard, or prolong the claim on it.

        Returns:
            False if somebody else holds it.
        """
        with self._lock:
            return self._take(shard, owner, seconds)

    def _take(self, shard: ShardId, owner: str, seconds: float) -> bool:
        held = self._current(shard)
        if held is not None:
            _, token, expires = held
            if token != self._token and expires > time.time():
                return False
        generation = 0 if held is None else held[0] + 1
        key = _key(shard, generation)
        value = {"owner": owner, "token": self._token, "expires": time.time() + seconds}
        if not self._location.put_if_absent(key, json.dumps(value).encode()):
            return False
        # A release between the look and the creation can leave a higher generation of another.
        now = self._current(shard)
        if now is None or now[:2] != (generation, self._token):
            self._location.delete(key)
            return False
        self._mine[shard] = (owner, seconds)
        self._drop(shard, below=generation)
        return True

    def holds(self, shard: ShardId) -> bool:
        """Return whether this writer may commit a shard; prolongs a claim that has run out.

        A writer that never claimed the shard may commit it while nobody else holds a claim.
        """
        with self._lock:
            held = self._current(shard)
            if shard not in self._mine:
                return held is None or held[2] <= time.time()
            if held is None or held[1] != self._token:
                return False
            return held[2] > time.time() or self._take(shard, *self._mine[shard])

    def release(self, shard: ShardId) -> None:
        """Give up a claim; nothing happens if it is not held."""
        with self._lock:
            held = self._current(shard)
            if self._mine.pop(shard, None) is not None and held and held[1] == self._token:
                self._drop(shard, below=held[0] + 1)

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

    def _drop(self, shard: ShardId, below: int) -> None:
        for generation in sorted(self._generations(shard)):
            if generation < below:
                self._location.delete(_key(shard, generation))


def _key(shard: ShardId, generation: int) -> str:
    return f"{claim_folder(shard)}/{generation:06d}.json"
