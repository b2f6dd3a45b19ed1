"""Dense codecs: float32 is exact, in any batch, and float16 says what it cannot hold."""

from __future__ import annotations

import pytest
import torch

from storage import Codec, RecordCodec, Signal
from storage.codecs.dense import Dense, DenseScores
from storage.codecs.sparse_scores import PackedScores, SparseScores
from tests.storage.codecs.samples import (
    BOXES,
    DELTAS,
    FEATURES,
    GEOMETRY,
    ONE_CLASS,
    ROWS,
    SCORES,
    make_values,
    round_trip,
)


@pytest.mark.parametrize("signal", [FEATURES, DELTAS, BOXES, ROWS], ids=lambda one: one.kind)
def test_float32_is_exact(signal: Signal) -> None:
    values = make_values(signal)
    assert torch.equal(round_trip(Dense(), signal, values), values)


def test_scores_of_float32_are_the_teachers_own_bits() -> None:
    logits = make_values(SCORES)
    each = torch.stack([one.sigmoid() for one in logits])
    assert torch.equal(round_trip(DenseScores(), SCORES, logits), each)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_decode_to_the_same_bits_in_any_batch(dtype: str) -> None:
    codec = DenseScores(dtype=dtype)
    codes = codec.encode(make_values(SCORES, count=64), SCORES, GEOMETRY)
    together = codec.decode(codes, SCORES, GEOMETRY)
    for n in range(64):
        one = {name: field[n : n + 1] for name, field in codes.items()}
        assert torch.equal(codec.decode(one, SCORES, GEOMETRY)[0], together[n]), n


@pytest.mark.parametrize(
    ("codec", "signal"),
    [
        (Dense(dtype="float16"), FEATURES), (Dense(dtype="float16"), DELTAS),
        (DenseScores(dtype="float16"), SCORES),
        (SparseScores(), ONE_CLASS), (PackedScores(), ONE_CLASS),
    ],
)  # fmt: skip
def test_float16_refuses_what_it_cannot_hold(codec: Codec, signal: Signal) -> None:
    values = make_values(signal)
    values[0, 0, 0] = 1e6
    record = RecordCodec(signals=((signal, codec),), num_detections=1)
    said = f"teacher's {signal.name} exceeds the range of float16.*CACHE.DTYPE"
    with pytest.raises(ValueError, match=said):
        record.encode({signal.name: values}, GEOMETRY)


def test_other_types_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"codec dense: dtype 'int8', expected one of .*float16"):
        Dense(dtype="int8")
