"""Metadata and commits hold what docs/FORMAT.md lists, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import CacheWriter, checksums, verify
from storage import commit as commits
from storage.layout import commit_key
from tests.storage.cases import (
    FIRST,
    contents,
    make_index,
    make_manifest,
    reframe,
    rewrite_root,
)


def first_object(body: Any) -> Any:
    return next(iter(body["objects"].values()))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: root.update(zarr_format=2),
        lambda root: root.update(zarr_format=3.0),
        lambda root: root.update(node_type="array"),
        lambda root: root.update(consolidated_metadata=None),
        lambda root: root["attributes"].update(mine=1),
        lambda root: root["attributes"]["gid"].update(mine=1),
        lambda root: root["attributes"]["gid"]["format"].update(mine=1),
        lambda root: root["attributes"]["gid"]["index"].update(views=2.0),
        lambda root: root["attributes"]["gid"]["digests"].pop("index/zarr.json"),
        lambda root: root["attributes"]["gid"]["digests"].pop("index/seed/c/0"),
        lambda root: root["attributes"]["gid"]["digests"].update({"notes.txt": "0" * 64}),
    ],
)
def test_a_root_that_says_anything_else_is_reported_and_the_dump_writes_it_again(
    cache: Path, change: Callable[[Any], Any]
) -> None:
    whole = contents(cache)
    root = json.loads((cache / "zarr.json").read_bytes())
    change(root)
    rewrite_root(cache, root)
    problems = verify(cache, "quick").problems
    assert {problem.kind for problem in problems} <= {"damaged", "foreign", "missing"}
    assert any("run the dump again" in str(problem) for problem in problems) and problems
    index = make_index(num_views=2)
    CacheWriter(cache, make_manifest(index), index)
    assert contents(cache) == whole


def test_a_zarr_json_whose_digest_was_forged_with_it(cache: Path) -> None:
    whole, key = contents(cache), "buckets/0032x0048/votes/zarr.json"
    forged = (cache / key).read_bytes().replace(b'"zarr_format": 3', b'"zarr_format": 2')
    (cache / key).write_bytes(forged)
    root = json.loads((cache / "zarr.json").read_bytes())
    root["attributes"]["gid"]["digests"][key] = checksums.sha256(forged)
    rewrite_root(cache, root)
    (problem,) = verify(cache, "quick").problems
    assert (problem.kind, problem.where) == ("damaged", key)
    index = make_index(num_views=2)
    CacheWriter(cache, make_manifest(index), index)
    assert contents(cache) == whole


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda body: body.update(mine=1), "mine"),
        (lambda body: body["format"].update(mine=1), "format.mine"),
        (lambda body: body["records"].update(mine=[1]), "records' mine"),
        (lambda body: body["records"].update(view=[False] * 3), "records.view"),
        (lambda body: body["records"].update(view=[0.0] * 3), "records.view"),
        (lambda body: first_object(body).update(mine=1), "mine"),
        (lambda body: first_object(body)["chunks"][0].__setitem__(0, False), "chunks"),
        (lambda body: first_object(body).update(xxh3_128="G" * 32), "no XXH3-128"),
    ],
)
def test_a_commit_that_says_anything_else_is_reported(
    cache: Path, change: Callable[[Any], Any], named: str
) -> None:
    path = cache / commit_key(FIRST)
    body = commits.unframe(path.read_bytes(), "commit")
    change(body)
    path.write_bytes(reframe(body))
    for level in ("quick", "full"):
        (problem,) = verify(cache, level).problems
        assert (problem.shard, problem.spoils) == (str(FIRST), True)
        assert named in problem.message and "storage repair" in problem.message


def test_a_commit_that_is_not_canonical_json(cache: Path) -> None:
    path = cache / commit_key(FIRST)
    text = json.dumps(commits.unframe(path.read_bytes(), "commit")).encode()
    digest = checksums.sha256(text).encode()
    path.write_bytes(b'{"commit":%b,"sha256":"%b"}\n' % (text, digest))
    (problem,) = verify(cache).problems
    assert "not written as canonical JSON" in problem.message and problem.spoils
