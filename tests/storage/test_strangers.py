"""Strangers: signals that no family has in our store, and a reader that knows nothing of ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage import (
    CacheReader,
    CacheWriter,
    FormatError,
    Geometry,
    Manifest,
    RecordCodec,
    build_index,
    compare,
    drop_views,
    get_preset,
    repair,
    verify,
)
from storage.codecs.record import joined
from tests.storage.cases import FIRST, SIGNALS, contents, fill, first_path, flip, open_writer
from tests.storage.codecs.samples import DELTAS, FEATURES, GEOMETRIES, SCORES, make_values

DOCUMENT = Path(__file__).parents[2] / "docs/FORMAT.md"


def test_records_of_signals_that_no_family_has_are_kept_like_any_other(
    tmp_path: Path, finished: Path
) -> None:
    """Signals `echo` and `votes`, of a codec that nobody knows: a store asks for no more."""
    place = tmp_path / "cache"
    fill(open_writer(place))
    fill(open_writer(place, num_views=2))  # grown
    assert CacheReader(place).manifest.signals == SIGNALS
    for level in ("quick", "full", "deep"):
        assert verify(place, level).ok
    assert compare(place, finished).same_bytes
    flip(first_path(place), 3)
    assert repair(place).shards == (FIRST,)
    fill(open_writer(place, num_views=2))
    assert contents(place) == contents(finished)
    drop_views(place, 1)
    reader = CacheReader(place)
    assert {"echo.codes", "echo.bound", "votes.high", "votes.values"} < reader.read(0).keys()
    # To decode them takes somebody who knows the codec.
    with pytest.raises(FormatError, match=r"signal echo: codec 'of_nobody': expected one of .*"
                       r" once the module that registers it is imported"):  # fmt: skip
        _ = reader.codec


def quoted(heading: str) -> str:
    """The Python under a heading of docs/FORMAT.md."""
    section = DOCUMENT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(code)


def write_balanced(path: Path) -> dict[str, Any]:
    """Write a store of two images, one of each size; return the second one's values."""
    sizes: tuple[Geometry, ...] = GEOMETRIES[:2]
    codec = RecordCodec.of_preset(
        get_preset("balanced", scores_kept=60), (FEATURES, SCORES, DELTAS), 2
    )
    names = [one.name for one in sizes]
    index = build_index(
        image_id=[7, 9], view=[0, 0], seed=[1, 2], height=[60, 30], width=[90, 50], bucket=names,
        shard_records=4,
    )  # fmt: skip
    manifest = Manifest.create(
        preset="balanced", codec=codec, levels={"p3": 8, "p4": 16, "p5": 32}, num_classes=7,
        geometries=sizes, shard_records=4, teacher={}, dataset={}, augmentation={}, numerics={},
    )  # fmt: skip
    writer = CacheWriter(path, manifest, index)
    for shard, geometry in zip(writer.missing(), sizes, strict=True):
        values = {one.name: make_values(one, geometry, 1, 5) for one in (FEATURES, SCORES, DELTAS)}
        codes = codec.encode(values, geometry)
        codes["detections"] = torch.full((1, 2, 6), -1.0)
        codes["pixels_crc32c"] = torch.zeros(1, dtype=torch.uint32)
        codes["pixels_sample"] = torch.zeros((1, 16, 16, 3), dtype=torch.uint8)
        data = joined(codec.arrays(geometry), codes)
        writer.write(shard, {name: one.numpy() for name, one in data})
    return {name: one[0].numpy() for name, one in codec.decode(codes, geometry).items()}


def test_a_balanced_record_is_decoded_by_what_the_document_quotes(tmp_path: Path) -> None:
    decoded = write_balanced(tmp_path / "cache")
    code = quoted("Read a record with zarr alone")
    assert "storage" not in code and len(code.splitlines()) <= 30
    names: dict[str, Any] = {"CACHE": str(tmp_path / "cache"), "IMAGE": 9, "VIEW": 0}
    exec(compile(code, "docs/FORMAT.md", "exec"), names)
    np.testing.assert_array_equal(names["features"], decoded["features"])
    np.testing.assert_array_equal(names["deltas"], decoded["deltas"])
    scores = decoded["scores"]
    kept = scores[names["anchor"], names["label"]]
    assert kept.shape == (60,)
    np.testing.assert_allclose(names["probability"], kept, rtol=1e-6)
    # They are the largest, too.
    np.testing.assert_allclose(np.sort(kept), np.sort(scores, axis=None)[-60:], rtol=1e-6)
