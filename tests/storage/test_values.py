"""The values of a record: what fields say of themselves is held against what they hold.

That codecs write nothing that is refused here is a part of their contract, in `codecs/`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage import Codec, Field, Signal
from storage.codecs.dense import Dense, DenseScores
from storage.codecs.predicted_deltas import PredictedDeltas
from storage.codecs.predicted_maps import PredictedMaps
from storage.codecs.sparse_scores import PackedScores, SparseScores
from storage.codecs.stepped_maps import SteppedMaps
from storage.values import wrong_detections, wrong_values
from tests.storage.codecs.samples import DELTAS, FEATURES, GEOMETRY, SCORES, make_values

NUM_SCORES = SCORES.shape(GEOMETRY)[0] * SCORES.shape(GEOMETRY)[1]


def encoded(codec: Codec, signal: Signal, name: str) -> tuple[Field, NDArray[Any]]:
    """Return one field, and a record's part of it."""
    (field,) = (one for one in codec.fields(signal, GEOMETRY) if one.name == name)
    return field, codec.encode(make_values(signal, count=1), signal, GEOMETRY)[name][0].numpy()


def wrong(field: Field, value: NDArray[Any]) -> str:
    return wrong_values(field, value, 60, 90, 7)


@pytest.mark.parametrize(
    ("codec", "signal", "name", "number", "said"),
    [
        (Dense(), FEATURES, "values", np.nan, "values holds NaN or infinity"),
        (DenseScores(), SCORES, "values", np.inf, "values holds NaN or infinity"),
        (Dense(dtype="float16"), DELTAS, "values", np.nan, "values holds NaN or infinity"),
        (SteppedMaps(), FEATURES, "codes", -128, "codes holds a value outside [-127, 127]"),
        (SteppedMaps(), FEATURES, "scale", -1, "scale holds a value outside [0, inf]"),
        (SparseScores(), SCORES, "value", -1, "value holds a value outside [0, 32767]"),
        (SparseScores(kept=9), SCORES, "bound", 1.5, "bound holds a value outside [0, 1]"),
        (SparseScores(), SCORES, "index", 3000, "index: its values do not ascend"),
        (PackedScores(), SCORES, "bound", -0.5, "bound holds a value outside [0, 1]"),
        (PredictedDeltas(), DELTAS, "scale", -0.5, "scale holds a value outside [0, inf]"),
        (PredictedMaps(), FEATURES, "scale", np.nan, "scale holds NaN or infinity"),
    ],
    ids=lambda one: getattr(one, "name", None),
)
def test_what_no_codec_writes_is_named(
    codec: Codec, signal: Signal, name: str, number: float, said: str
) -> None:
    field, value = encoded(codec, signal, name)
    assert wrong(field, value) == ""
    value = value.copy()
    value.reshape(-1)[:1] = number
    assert wrong(field, value) == said


def test_kept_scores_lie_among_the_scores() -> None:
    outside = f"holds a value outside [0, {NUM_SCORES - 1}]"
    field, index = encoded(SparseScores(kept=40), SCORES, "index")
    index = index.copy()
    last, index[-1] = index[-1], NUM_SCORES
    assert wrong(field, index) == f"index {outside}"
    index[-1], index[0] = last, -1
    assert wrong(field, index) == f"index {outside}"


def test_gaps_of_kept_scores_lead_nowhere_else() -> None:
    field, gaps = encoded(PackedScores(kept=40), SCORES, "gap")
    gaps = gaps.copy()
    gaps[2, -1] = 1  # the last index, 65536 further on
    assert wrong(field, gaps) == f"gap holds a value outside [0, {NUM_SCORES - 1}]"
    gaps[:, 3] = 0  # the same index twice
    assert wrong(field, gaps) == "gap: its values do not ascend"


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
