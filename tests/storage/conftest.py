"""A finished tiny cache to copy, and the store backends."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from zarr.storage import MemoryStore

from storage.location import Location
from tests.storage.cases import make_cache


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


@pytest.fixture(params=["local", "memory"])
def new_location(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Location]:
    """Make empty locations of one backend. What holds for one must hold for all."""
    made = []

    def make() -> Location:
        made.append(None)
        if request.param == "local":
            return Location(tmp_path / f"store{len(made)}")
        return Location(MemoryStore())

    return make


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for a writer that might be about to make a damaged manifest right."""
    monkeypatch.setattr("storage.metadata._PATIENCE_SEC", (0.0,))
