"""Records of several padded sizes decoded onto one grid, against each of them decoded alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from storage import Geometry, get_preset
from tests.storage.test_presets import make_outputs

GRID = Geometry(64, 96, ((8, 12), (4, 6), (2, 3)), 6, 7, 3)
# Smaller in one direction, in both, in the coarsest level too, and the grid's own size.
GEOMETRIES = [
    Geometry(64, 72, ((8, 9), (4, 5), (2, 3)), 6, 7, 3),
    Geometry(40, 88, ((5, 11), (3, 6), (2, 3)), 6, 7, 3),
    GRID,
    Geometry(24, 24, ((3, 3), (2, 2), (1, 1)), 6, 7, 3),
]
SPARSE: list[tuple[str, dict[str, Any]]] = [
    ("balanced", {}),
    ("compact", {}),
    ("balanced", {"scores_kept": 50}),
    ("compact", {"scores_kept": 50}),
]


def nearest(own: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Of every position of the grid, the nearest of a record's own, and whether it is the same."""
    found, inside = [], []
    sizes = zip(own.level_sizes, GRID.level_sizes, own.level_offsets[:-1], strict=True)
    for (h, w), (height, width), start in sizes:
        for y in range(height):
            for x in range(width):
                found.append(start + min(y, h - 1) * w + min(x, w - 1))
                inside.append(y < h and x < w)
    return np.array(found), np.array(inside)


@pytest.mark.parametrize(("name", "parameters"), SPARSE)
def test_together_records_decode_to_the_bits_of_each_alone(
    name: str, parameters: dict[str, Any]
) -> None:
    preset = get_preset(name, **parameters)
    codes = [
        preset.encode(make_outputs(1, geometry, seed), geometry)
        for seed, geometry in enumerate(GEOMETRIES)
    ]
    records = [{field: value[0] for field, value in one.items()} for one in codes]
    together = preset.decode_onto(records, GEOMETRIES, GRID)
    assert together is not None and together.valid is not None
    for n, (one, own) in enumerate(zip(codes, GEOMETRIES, strict=True)):
        alone = preset.decode(one, own)
        position, inside = nearest(own)
        assert torch.equal(together.features[n], alone.features[0][:, position])
        anchors = np.repeat(inside, GRID.num_anchors)
        assert np.array_equal(together.valid[n].numpy(), anchors)
        for field in ("probabilities", "deltas"):
            placed, wanted = getattr(together, field)[n], getattr(alone, field)[0]
            rows = wanted.unflatten(0, (-1, GRID.num_anchors))[position[inside]].flatten(0, 1)
            assert torch.equal(placed[anchors], rows)
            assert not placed[~anchors].any()


def test_exact_records_are_decoded_size_by_size() -> None:
    """A sigmoid rounds by the place in memory, and these must be the teacher's own bits."""
    assert get_preset("exact").decode_onto([], [], GRID) is None


@pytest.mark.parametrize("name", ["balanced", "compact"])
def test_a_record_of_another_size_than_said_is_refused(name: str) -> None:
    preset = get_preset(name)
    own = GEOMETRIES[0]
    (record,) = (
        {field: value[0] for field, value in one.items()}
        for one in [preset.encode(make_outputs(1, own), own)]
    )
    with pytest.raises(ValueError, match=rf"preset {name}: field \w+ is .* expected"):
        preset.decode_onto([record, record], [own, GRID], GRID)
