"""Manifest, index, plan and commit: nothing forged gets through; single values of each.

`test_fuzz` does to a whole forged store everything that a user can do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import CacheReader, FormatError, ShardId, VersionError, plan_to_json, verify
from storage import commit as commits
from storage.index import COLUMNS, ShardTable
from storage.layout import parse_index_chunk, parse_root, root_json, seal
from storage.plan import plan_from_json
from storage.schema import check_key
from tests.storage.cases import WIDE, make_index, make_manifest, reframe, rewrite_root
from tests.storage.forging import FUZZ, HOSTILE, JSON, paths, replaced

INDEX = make_index(num_views=2)


SEALED, _ = seal(make_manifest(INDEX), INDEX)


class TestForgery:
    """Whatever somebody writes into the JSON of a store, only documented errors come out."""

    ROOT = json.loads(root_json(SEALED))
    PLAN = plan_to_json(SEALED, INDEX)

    @given(st.sampled_from(paths(ROOT)), HOSTILE | JSON)
    @FUZZ
    def test_manifest(self, path: tuple[Any, ...], new: Any) -> None:
        forged = replaced(self.ROOT, path, new)
        raw = json.dumps(forged).encode()
        try:
            manifest = parse_root(raw, "store")
        except (FormatError, VersionError):
            return
        for shard in map(ShardId, manifest.bucket_names, range(len(manifest.bucket_names))):
            check_key(f"buckets/{shard}")
        assert all(check_key(key) for key in manifest.digests)
        for arrays in manifest.arrays.values():
            assert all(array.num_bytes <= 1 << 31 for array in arrays)

    @given(st.binary(max_size=300))
    @FUZZ
    def test_bytes_that_are_no_manifest(self, raw: bytes) -> None:
        with pytest.raises(FormatError):
            parse_root(raw, "store")

    @given(st.sampled_from(paths(PLAN)), HOSTILE | JSON)
    @FUZZ
    def test_plan(self, path: tuple[Any, ...], new: Any) -> None:
        try:
            plan = plan_from_json(replaced(self.PLAN, path, new), "plan")
        except (FormatError, VersionError):
            return
        assert all(check_key(f"commits/{shard}") for shard in plan.shards)

    def test_commit(self, finished: Path) -> None:
        reader = CacheReader(finished)
        shard = ShardTable(reader.index, reader.manifest.shard_records).shards[0]
        raw = (finished / "commits" / f"{shard}.json").read_bytes()
        body = commits.unframe(raw, "commit")

        @given(st.sampled_from(paths(body)), HOSTILE | JSON)
        @FUZZ
        def forge(path: tuple[Any, ...], new: Any) -> None:
            try:
                forged = reframe(replaced(body, path, new))
            except ValueError:  # not even JSON
                return
            try:
                commit = commits.parse(forged, shard, reader.manifest, "store")
            except (FormatError, VersionError):
                return
            for name, stored in commit.objects.items():
                offset, length, _ = stored.chunks.T
                assert (offset >= 0).all() and (offset + length <= stored.size).all(), name
                assert (length <= 1 << 31).all()

        forge()

    @given(st.binary(max_size=300))
    @FUZZ
    def test_bytes_that_are_no_commit(self, raw: bytes) -> None:
        with pytest.raises(FormatError):
            commits.parse(raw, ShardId(WIDE.name, 0), SEALED, "store")

    @given(st.sampled_from(sorted(COLUMNS)), st.binary(max_size=300) | st.none())
    @FUZZ
    def test_bytes_that_are_no_index(self, column: str, raw: bytes | None) -> None:
        with pytest.raises(FormatError):
            parse_index_chunk(raw, COLUMNS[column], "index")

    def test_an_index_that_promises_more_than_it_holds_allocates_nothing(self, cache: Path) -> None:
        root = json.loads((cache / "zarr.json").read_bytes())
        root["attributes"]["gid"]["index"]["records"] = (1 << 27) - 1
        rewrite_root(cache, root)
        report = verify(cache)
        assert [problem.kind for problem in report.problems] == ["damaged"]
