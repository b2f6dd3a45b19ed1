"""Rounding, prediction and packing, and what the codecs made of them promise."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from storage import Geometry, Signal
from storage.codecs import predicted_deltas, predicted_maps, quantising
from storage.codecs.predicted_deltas import PredictedDeltas
from storage.codecs.predicted_maps import PredictedMaps
from storage.codecs.stepped_maps import SteppedMaps
from tests.storage.codecs.samples import DELTAS, FEATURES, make_values, round_trip

GEOMETRY = Geometry(64, 96, ((8, 12), (4, 6), (1, 1)))


class TestCodes:
    @pytest.mark.parametrize("base", [16, 256])
    def test_a_split_loses_nothing_and_leaves_no_high_part_of_small_codes(self, base: int) -> None:
        codes = torch.arange(-32_000, 32_000, dtype=torch.int16)
        low, high = quantising.split(codes, base)
        assert torch.equal(low + base * high, codes)
        assert low.min() == -base // 2 and low.max() == base // 2 - 1
        assert not high[(codes >= -base // 2) & (codes < base // 2)].any()
        assert high.abs().max() <= 32_000 // base + 1

    @pytest.mark.parametrize("positions", [1, 2, 7, 8])
    def test_pairs_come_apart_again(self, positions: int) -> None:
        codes = torch.arange(3 * positions, dtype=torch.int16).remainder(16).sub(8)
        codes = codes.view(1, 3, positions)
        packed = quantising.pack_pairs(codes)
        assert packed.shape == (1, 3, -(-positions // 2)) and packed.dtype == torch.uint8
        assert torch.equal(quantising.unpack_pairs(packed, positions), codes)

    def test_a_prediction_is_undone_even_at_the_largest_codes(self) -> None:
        rng = torch.Generator().manual_seed(1)
        shape = (2, 3, GEOMETRY.num_positions)
        codes = torch.randint(-8191, 8192, shape, generator=rng, dtype=torch.int16)
        # The worst case of a sum of four: signs that alternate along both axes.
        row = torch.arange(12).remainder(2) * 2 - 1
        codes[0, 0, :96] = (8191 * (row[None] * (torch.arange(8).remainder(2) * 2 - 1)[:, None])
                            ).flatten().to(torch.int16)  # fmt: skip
        left = quantising.predict(codes, GEOMETRY)
        assert torch.equal(quantising.unpredict(left, GEOMETRY), codes)

    def test_a_prediction_is_left_plus_above_minus_above_left_within_a_level(self) -> None:
        ramp = torch.arange(8)[:, None] * 5 + torch.arange(12) * 3
        codes = torch.zeros(1, 1, GEOMETRY.num_positions, dtype=torch.int16)
        codes[0, 0, :96] = ramp.flatten()
        codes[0, 0, 96:] = 7
        left = quantising.predict(codes, GEOMETRY)[0, 0]
        assert not left[:96].view(8, 12)[1:, 1:].any()
        # Each level begins anew.
        assert left[96:].tolist() == [7] + [0] * 23 + [7]


class TestMaps:
    def test_stepped_ones_are_within_half_a_step_of_their_level_and_channel(self) -> None:
        values = make_values(FEATURES)
        decoded = round_trip(SteppedMaps(), FEATURES, values)
        for start, stop in pairwise(GEOMETRY.level_offsets):
            level = values[:, :, start:stop]
            step = level.abs().amax(dim=2, keepdim=True) / 127
            assert ((decoded[:, :, start:stop] - level).abs() <= step * 0.5001).all()

    @pytest.mark.parametrize(
        ("height", "share"), [(320, predicted_maps.STEP), (160, predicted_maps.FINE_STEP)]
    )
    def test_predicted_ones_are_within_half_a_step_and_never_clipped(
        self, height: int, share: float
    ) -> None:
        large = Geometry(height, height, ((40, 40),))  # a stride of 8 and of 4 pixels
        eight = Signal("features", "maps", {"channels": 8})
        values = make_values(eight, large, 1)
        values[:, 2, 5] = 300.0  # more than 127 steps of the level
        decoded = round_trip(PredictedMaps(), eight, values, large)
        spread = values.std(correction=0) * share
        own = values.abs().amax(dim=2, keepdim=True) / 127
        step = torch.maximum(spread, own)
        error = (decoded - values).abs()
        assert (error <= step * 0.5001).all() and error.max() > spread * 0.49
        assert own[0, 2, 0] > spread > own[0, 3, 0]
        torch.testing.assert_close(decoded[:, 2, 5], values[:, 2, 5])


def test_deltas_are_within_half_a_step_and_large_ones_make_it_larger() -> None:
    codec, values = PredictedDeltas(), make_values(DELTAS)
    decoded = round_trip(codec, DELTAS, values)
    assert (decoded - values).abs().max() <= predicted_deltas.STEP / 2 + 1e-6
    values[1, 7, 2] = 1000.0
    codes = codec.encode(values, DELTAS, GEOMETRY)
    assert codes["scale"].tolist() == pytest.approx([1 / 128, 1 / 8, 1 / 128, 1 / 128])
    assert round_trip(codec, DELTAS, values)[1, 7, 2] == 1000.0
