"""Caches and trainings of views that are cut, padded and coloured."""

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from configs.loader import load_config
from stage1_dump.dump import run as dump
from stage1_dump.prepare import prepare
from storage import CacheReader
from tests.stage2_distill.conftest import Configure, write_student
from tests.stage2_distill.runs import build, losses_of, train

VIEWS = {
    "SCALES": [], "MAX_SIZE": 0, "SCALE_RANGE": [0.5, 2.0], "FIXED_SIZE": [64, 96],
    "CROP": ["relative_range", 0.3, 0.3], "FLIP_VERTICAL": 0.5, "NUM": 2, "SEED": 11,
}  # fmt: skip
# Views of which no object is left.
EMPTY = {**VIEWS, "CROP": ["absolute", 2, 2], "NUM": 1}
METHODS = ["gid", "pkd", "frs", "cwd", "mgd", "fgd", "mimic", "boxes", "pseudo"]


@pytest.fixture(scope="module")
def cached(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of these views; its config lies beside it."""
    target = tmp_path_factory.mktemp("views")
    location = {"LOCATION": str(target / "cache"), "PRESET": "exact", "SHARD_RECORDS": 3}
    path = write_student(folder, target, "exact", VIEWS=VIEWS, CACHE=location)
    dump(load_config(str(path)))
    return path


def test_views_of_a_fixed_size_are_one_bucket(cached: Path) -> None:
    prepared = prepare(load_config(str(cached)))
    assert prepared.index.bucket_names == ("0064x0096",)
    assert [(one.height, one.width) for one in prepared.geometries] == [(64, 96)]
    assert set(prepared.index.height) == {64} and set(prepared.index.width) == {96}


def test_a_student_sees_the_pixels_that_the_teacher_saw(cached: Path) -> None:
    losses = losses_of(train(cached))
    assert all(math.isfinite(one) for values in losses.values() for one in values)
    reader = CacheReader(str(cached.with_name("cache")))
    assert len(np.unique([reader.read(n)["pixels_crc32c"] for n in range(len(reader))])) > 20


@pytest.mark.parametrize("key", ["CROP", "SCALE_RANGE", "FIXED_SIZE", "FLIP_VERTICAL"])
def test_a_cache_of_other_views_is_refused(cached: Path, key: str) -> None:
    other = {
        "CROP": ("relative_range", 0.3, 0.4), "SCALE_RANGE": (0.6, 2.0), "FIXED_SIZE": (96, 96),
        "FLIP_VERTICAL": 0.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="augmentation"):
        train(cached, f"VIEWS.{key}", other[key])


@pytest.mark.parametrize("source", ["live", "none"])
def test_every_method_bears_views_that_show_no_object(configure: Configure, source: str) -> None:
    path = configure(VIEWS=EMPTY, TEACHER={"SOURCE": source}, DISTILL={"METHODS": METHODS})
    overrides = ["SOLVER.MAX_ITER", 1]
    losses = losses_of(train(path, *overrides))
    assert all(math.isfinite(one) for values in losses.values() for one in values)


@pytest.mark.parametrize("first", [0, 2])
def test_the_last_iterations_show_the_last_views(configure: Configure, first: int) -> None:
    path = configure(VIEWS={"LAST": [1], "LAST_ITERS": 1}, SOLVER={"MAX_ITER": 4})
    parts = build(path)._data
    parts.sampler.first_iter = first
    shown = [{item["view"] for item in batch} for batch in islice(parts.loader, 5 - first)]
    expected = [{0, 1}, {0, 1}, {0, 1}, {1}, {1}]
    assert shown[3 - first :] == expected[3:]
    assert 0 in set().union(*shown[: 3 - first])
