"""Forged stores, digests and all: nothing but documented errors comes out, and little memory goes.

`test_forgery` forges single values; here everything that a user can do is done to a whole store.
"""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import CacheReader, checksums, compare, verify
from storage import commit as commits
from storage.errors import CacheError
from storage.index import COLUMNS
from storage.layout import COMMITS, index_chunks
from storage.location import Location
from storage.repairs import plan_repair
from storage.schema import check_key
from tests.storage import faults
from tests.storage.cases import contents, make_index, reframe
from tests.storage.forging import HOSTILE, JSON, paths, replaced

FULL = os.environ.get("GID_FAULTS") == "full"  # as `make faults` has it
FUZZ = settings(
    max_examples=200 if FULL else 12, deadline=None, suppress_health_check=list(HealthCheck)
)
MOST_MEMORY = 1 << 26


@contextmanager
def little_memory() -> Iterator[None]:
    """Check that what happens inside never holds more than `MOST_MEMORY` bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


class Victim:
    """A store that is forged, used, and made whole again.

    Args:
        honest: the store as it should be. place: where its copy lies.
    """

    def __init__(self, honest: Path, place: Path) -> None:
        self.whole = contents(honest)
        self.honest, self.place = honest, place
        faults.put(place, self.whole)

    def use(self, forged: Mapping[str, bytes]) -> None:
        """Do with a forged store what a user may do; any error must be a documented one."""
        faults.put(self.place, forged)
        try:
            with little_memory():
                for use in (self.read, self.check, self.compare):
                    with suppress(CacheError, ValueError, FileNotFoundError):
                        use()
        finally:
            faults.put(self.place, {key: self.whole[key] for key in forged})

    def read(self) -> None:
        """Open the store and read every record."""
        reader = CacheReader(self.place)
        for record in range(0, min(len(reader), 50), 2):
            with suppress(CacheError):
                reader.read(record)

    def check(self) -> None:
        """Verify it and plan its repair."""
        for level in ("quick", "deep"):
            report = verify(self.place, level)
            plan = plan_repair(Location(self.place), report)
            assert all(check_key(f"{COMMITS}/{shard}") for shard in plan.shards)
            assert all("\n" not in line for line in report.lines())

    def compare(self) -> None:
        """Compare it with an honest one."""
        compare(self.place, self.honest)


@pytest.fixture(scope="module")
def victim(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """A complete store."""
    return Victim(finished, tmp_path_factory.mktemp("victim"))


def reseal(root: Any) -> dict[str, bytes]:
    """Return a forged root and the digest that belongs to it."""
    raw = json.dumps(root).encode()
    return {"zarr.json": raw, "manifest.sha256": f"{checksums.sha256(raw)}\n".encode()}


def test_forged_manifests(victim: Victim) -> None:
    root = json.loads(victim.whole["zarr.json"])

    @given(st.sampled_from(paths(root)), HOSTILE | JSON)
    @FUZZ
    def forge(path: tuple[Any, ...], new: Any) -> None:
        with suppress(ValueError):  # a number that is too long to be written
            victim.use(reseal(replaced(root, path, new)))

    forge()


NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-1, 0, 1, 2, 2**31, 2**62])


def test_forged_indexes(victim: Victim) -> None:
    root = json.loads(victim.whole["zarr.json"])
    index = make_index(num_views=2)

    @given(
        st.dictionaries(st.sampled_from(sorted(COLUMNS)), st.lists(NUMBERS, max_size=4)),
        st.integers(0, len(index) - 1),
        st.sampled_from([len(index), 1, 2**27]),
    )
    @FUZZ
    def forge(changes: dict[str, list[int]], start: int, records: int) -> None:
        columns = {name: getattr(index, name).copy() for name in COLUMNS}
        for name, values in changes.items():
            room = columns[name][start : start + len(values)]
            room[:] = np.array(values[: len(room)], dtype=np.int64).astype(room.dtype)
        victim.use(forged_index(root, columns, index.bucket_names, records))

    forge()


def forged_index(
    root: Any, columns: Mapping[str, Any], names: tuple[str, ...], records: int
) -> dict[str, bytes]:
    """Return the objects of an index, and a root in which all digests are theirs."""
    chunks = {
        f"index/{name}/c/0": next(index_chunks(columns[name], dtype))
        for name, dtype in COLUMNS.items()
    }
    manifest = dict(root["attributes"]["gid"])
    raw = [np.ascontiguousarray(columns[name]).tobytes() for name in COLUMNS]
    manifest["digests"] = {
        **manifest["digests"], **{key: checksums.sha256(one) for key, one in chunks.items()}
    }  # fmt: skip
    manifest["index"] = {
        "views": int(columns["view"][-1]) + 1,
        "records": records,
        "sha256": checksums.sha256("\n".join(names).encode(), *raw),
    }
    slots = {
        name: int(columns["slot"][columns["bucket"] == number].max(initial=0)) + 1
        for number, name in enumerate(names)
    }
    manifest["slots"] = slots
    return {**chunks, **reseal({**root, "attributes": {"gid": manifest}})}


def test_forged_commits(victim: Victim) -> None:
    key = min(key for key in victim.whole if key.startswith(COMMITS))
    body = commits.unframe(victim.whole[key], key)

    @given(st.sampled_from(paths(body)), HOSTILE | JSON)
    @FUZZ
    def forge(path: tuple[Any, ...], new: Any) -> None:
        with suppress(ValueError):  # not even JSON
            victim.use({key: reframe(replaced(body, path, new))})

    forge()


def test_random_bytes_in_the_place_of_any_object(victim: Victim) -> None:
    @given(st.sampled_from(sorted(victim.whole)), st.binary(max_size=400))
    @FUZZ
    def forge(key: str, raw: bytes) -> None:
        victim.use({key: raw})

    forge()


@pytest.mark.parametrize("name", ["zarr.json", "manifest.sha256", "index/slot/c/0", "commits"])
def test_an_object_of_a_terabyte_is_not_read_to_its_end(
    cache: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.metadata.MAX_METADATA_BYTES", 1 << 20)
    monkeypatch.setattr("storage.checker.MAX_METADATA_BYTES", 1 << 20)
    path = cache / (name if name != "commits" else "commits/0032x0048/00000.json")
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with little_memory():
        report = verify(cache)
    assert [problem.kind for problem in report.problems] == ["damaged"]
