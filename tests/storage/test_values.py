"""The values of a record: what presets encode makes sense, and what they never encode does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from storage import Field, Geometry, RawOutputs, get_preset, preset_names
from storage.values import wrong_detections, wrong_values

GEOMETRY = Geometry(64, 96, ((8, 12), (4, 6), (2, 3)), 6, 5, 3)


def encoded(preset: str) -> tuple[dict[str, Field], dict[str, NDArray[Any]]]:
    """Return the fields of a preset and one encoded record."""
    generator = torch.Generator().manual_seed(3)
    num_boxes = GEOMETRY.num_boxes
    shapes = {
        "features": (1, GEOMETRY.channels, GEOMETRY.num_positions),
        "logits": (1, num_boxes, GEOMETRY.num_classes),
        "deltas": (1, num_boxes, 4),
    }
    raw = RawOutputs(
        **{name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    )
    codec = get_preset(preset, **({"scores_kept": 40} if preset != "exact" else {}))
    fields = {field.name: field for field in codec.fields(GEOMETRY)}
    return fields, {name: one[0].numpy() for name, one in codec.encode(raw, GEOMETRY).items()}


def wrong(preset: str, field: Field, value: NDArray[Any]) -> str:
    return wrong_values(preset, field, value, GEOMETRY, 60, 90)


@pytest.mark.parametrize("preset", preset_names())
def test_what_a_preset_encodes_makes_sense(preset: str) -> None:
    fields, values = encoded(preset)
    assert fields.keys() == values.keys()
    for name, value in values.items():
        assert wrong(preset, fields[name], value) == ""


@pytest.mark.parametrize(
    ("preset", "name", "number", "said"),
    [
        ("exact", "features", np.nan, "features holds NaN or infinity"),
        ("exact", "logits", np.inf, "logits holds NaN or infinity"),
        ("balanced", "deltas", np.nan, "deltas holds NaN or infinity"),
        ("balanced", "features", -128, r"features holds a value outside \[-127, 127\]"),
        ("balanced", "feature_scale", -1, r"feature_scale holds a value outside \[0, inf\]"),
        ("balanced", "score_value", -1, r"score_value holds a value outside \[0, 32767\]"),
        ("balanced", "score_bound", 1.5, r"score_bound holds a value outside \[0, 1\]"),
        ("balanced", "score_index", 5000, "indices of the kept scores do not ascend"),
        ("compact", "score_bound", -0.5, r"score_bound holds a value outside \[0, 1\]"),
        ("compact", "delta_scale", -0.5, r"delta_scale holds a value outside \[0, inf\]"),
        ("compact", "feature_scale", np.nan, "feature_scale holds NaN or infinity"),
    ],
)
def test_what_no_preset_encodes_is_named(preset: str, name: str, number: float, said: str) -> None:
    fields, values = encoded(preset)
    value = values[name].copy()
    value.reshape(-1)[:1] = number
    with pytest.raises(AssertionError, match=said):
        assert wrong(preset, fields[name], value) == ""


def test_kept_scores_lie_among_the_scores() -> None:
    num_scores = GEOMETRY.num_boxes * GEOMETRY.num_classes
    fields, values = encoded("balanced")
    index = values["score_index"].copy()
    index[-1] = num_scores
    assert f"outside [0, {num_scores})" in wrong("balanced", fields["score_index"], index)
    index[-1], index[0] = num_scores - 1, -1
    assert f"outside [0, {num_scores})" in wrong("balanced", fields["score_index"], index)
    fields, values = encoded("compact")
    gaps = values["score_gap"].copy()
    gaps[2, -1] = 1  # the last index, 65536 further on
    assert f"outside [0, {num_scores})" in wrong("compact", fields["score_gap"], gaps)
    gaps[:, 3] = 0  # the same index twice
    assert "do not ascend" in wrong("compact", fields["score_gap"], gaps)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([0, 0, 5, 5, 0.5, 1], ""),
        ([0, 0, 5, 5, 0.9, 1], "not sorted"),
        ([0, 0, 5, 5, 1.5, 1], "score is outside"),
        ([-1, 0, 5, 5, 0.5, 1], "outside the view of 45 x 30"),
        ([0, 0, 5, 31, 0.5, 1], "outside the view of 45 x 30"),
        ([6, 0, 5, 5, 0.5, 1], "negative size"),
        ([0, 0, 5, 5, 0.5, 4], "class is not one of 4"),
        ([0, 0, 5, 5, 0.5, 0.5], "class is not one of 4"),
    ],
)
def test_wrong_detections(row: list[float], said: str) -> None:
    first = [0, 0, 45, 30, 0.8 if row[4] < 1 else 1.5, 0]
    detections = np.array([first, row, [-1] * 6], dtype=np.float32)
    assert said in wrong_detections(detections, 30, 45, 4)
    assert bool(said) == bool(wrong_detections(detections, 30, 45, 4))
