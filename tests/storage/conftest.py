"""A finished tiny cache to copy, and the store backends."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest
from zarr.storage import MemoryStore

from storage.location import Location
from tests.storage.cases import NewLocation, make_cache


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache of two views. Not to be changed: see `cache`."""
    path = tmp_path_factory.mktemp("finished") / "cache"
    make_cache(path, num_views=2)
    return path


@pytest.fixture
def cache(finished: Path, tmp_path: Path) -> Path:
    """A copy of the complete cache, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "cache"))


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def new_location(request: pytest.FixtureRequest, tmp_path: Path) -> NewLocation:
    """Make empty locations of one backend. What holds for one must hold for all."""
    if request.param == "memory":
        return lambda: Location(MemoryStore())
    if request.param == "s3":
        bucket: str = request.getfixturevalue("s3_bucket")
        return lambda: Location(f"{bucket}/{uuid.uuid4().hex}")
    return lambda: Location(tmp_path / uuid.uuid4().hex)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk, nor for a writer about to make a damaged manifest right.

    No test can pull the plug; that all is forced to the disk before the commit has one of its own,
    and the writers that are killed do force it.
    """
    monkeypatch.setattr("storage.metadata._PATIENCE_SEC", (0.0,))
    monkeypatch.setattr("storage.local._fsync", lambda _: None)
