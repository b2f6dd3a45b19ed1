"""What the lossy presets are made of, and what compact promises beyond every preset."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from numcodecs import Zstd
from torch import Tensor

from storage import Geometry, RawOutputs, get_preset
from storage.layout import ZSTD_LEVEL
from storage.presets import codes as coding
from storage.presets import compact, scores
from tests.storage.test_presets import COCO, GEOMETRY, make_outputs, round_trip


class TestScoreModel:
    """What stands for the scores that are not kept; the same for balanced and compact."""

    KINDS = Geometry(64, 64, ((8, 8), (4, 4)), 2, 20, 3)

    def model(self, logits: Tensor, num_kept: int) -> Tensor:
        index, value, dropped = scores.keep_largest(logits, num_kept)
        fields = scores.encode_rest(dropped, index, self.KINDS, 16)
        fields["score_power"] = scores.unpack_power(fields["score_power"], self.KINDS.num_boxes)
        return scores.decode_scores(index, value, fields, self.KINDS, 16)

    def logits(self, sharpness: float) -> Tensor:
        """Scores whose classes have the same order everywhere, peaked to a different degree."""
        rng = torch.Generator().manual_seed(3)
        common = torch.randn(self.KINDS.num_classes, generator=rng)
        degree = 1 + sharpness * torch.rand(1, self.KINDS.num_boxes, 1, generator=rng)
        return degree * common - 5

    def test_classes_that_are_likelier_everywhere_are_so_in_the_model(self) -> None:
        logits = self.logits(0.0)
        true, got = logits.sigmoid(), self.model(logits, 10)
        # Two codes of 16 steps an octave: half a step each.
        assert ((got - true).abs() / true).max() < 0.05

    def test_the_power_follows_how_peaked_an_anchor_is(self) -> None:
        logits = self.logits(1.0)
        true, got = logits.sigmoid(), self.model(logits, 10)
        profile = true.mean(dim=1, keepdim=True)
        no_power = profile * true.sum(dim=2, keepdim=True) / profile.sum(dim=2, keepdim=True)
        error, without, mean_alone = (
            float((one - true).abs().sum()) for one in (got, no_power, true.mean(dim=2)[..., None])
        )
        assert error < 0.6 * without
        assert error < 0.1 * mean_alone

    def test_the_sum_of_an_anchor_holds_whatever_is_kept(self) -> None:
        logits = torch.randn(2, self.KINDS.num_boxes, 20) * 2 - 4
        for num_kept in (1, 300, self.KINDS.num_boxes * 20 - 1):
            got, true = self.model(logits, num_kept).sum(dim=2), logits.sigmoid().sum(dim=2)
            # Half a step of the mean; where the model is cut at the bound, a little more.
            assert ((got - true).abs() / true).quantile(0.95) < 0.03

    def test_no_dropped_score_is_off_by_more_than_the_bound(self) -> None:
        generator = torch.Generator().manual_seed(5)
        logits = torch.randn(2, self.KINDS.num_boxes, 20, generator=generator) * 4 - 2
        # Anchors whose dropped classes are few, alike and large, where others have a clear order.
        logits[:, ::7, :18] = -20.0
        logits[:, ::7, 18:] = 1.0
        index, _, dropped = scores.keep_largest(logits, 900)
        bound = scores.encode_rest(dropped, index, self.KINDS, 16)["score_bound"]
        got, true = self.model(logits, 900), logits.sigmoid()
        assert ((got - true).abs().amax(dim=(1, 2)) <= bound + 1e-6).all()
        dropped = torch.ones_like(true).flatten(1).scatter(1, index, 0.0).view_as(true)
        assert ((got * dropped).amax(dim=(1, 2)) <= bound + 1e-6).all()

    def test_one_class_alone_is_modelled_by_its_mean(self) -> None:
        one = Geometry(64, 64, ((8, 8),), 2, 1, 3)
        logits = torch.randn(1, one.num_boxes, 1) - 3
        preset = get_preset("balanced", scores_kept=5)
        raw = RawOutputs(
            features=torch.zeros(1, 2, 64), logits=logits, deltas=torch.zeros(1, one.num_boxes, 4)
        )
        got = preset.decode(preset.encode(raw, one), one).probabilities
        assert ((got - logits.sigmoid()).abs() / logits.sigmoid()).max() < 0.025


class TestCodes:
    @pytest.mark.parametrize("base", [16, 256])
    def test_a_split_loses_nothing_and_leaves_no_high_part_of_small_codes(self, base: int) -> None:
        codes = torch.arange(-32_000, 32_000, dtype=torch.int16)
        low, high = coding.split(codes, base)
        assert torch.equal(low + base * high, codes)
        assert low.min() == -base // 2 and low.max() == base // 2 - 1
        assert not high[(codes >= -base // 2) & (codes < base // 2)].any()
        assert high.abs().max() <= 32_000 // base + 1

    @pytest.mark.parametrize("positions", [1, 2, 7, 8])
    def test_pairs_come_apart_again(self, positions: int) -> None:
        codes = torch.arange(3 * positions, dtype=torch.int16).remainder(16).sub(8)
        codes = codes.view(1, 3, positions)
        packed = coding.pack_pairs(codes)
        assert packed.shape == (1, 3, -(-positions // 2)) and packed.dtype == torch.uint8
        assert torch.equal(coding.unpack_pairs(packed, positions), codes)

    def test_a_prediction_is_undone_even_at_the_largest_codes(self) -> None:
        rng = torch.Generator().manual_seed(1)
        shape = (2, 3, GEOMETRY.num_positions)
        codes = torch.randint(-8191, 8192, shape, generator=rng, dtype=torch.int16)
        # The worst case of a sum of four: signs that alternate along both axes.
        row = torch.arange(12).remainder(2) * 2 - 1
        codes[0, 0, :96] = (8191 * (row[None] * (torch.arange(8).remainder(2) * 2 - 1)[:, None])
                            ).flatten().to(torch.int16)  # fmt: skip
        left = coding.predict(codes, GEOMETRY)
        assert torch.equal(coding.unpredict(left, GEOMETRY), codes)

    def test_a_prediction_is_left_plus_above_minus_above_left_within_a_level(self) -> None:
        ramp = torch.arange(8)[:, None] * 5 + torch.arange(12) * 3
        codes = torch.zeros(1, 1, GEOMETRY.num_positions, dtype=torch.int16)
        codes[0, 0, :96] = ramp.flatten()
        codes[0, 0, 96:] = 7
        left = coding.predict(codes, GEOMETRY)[0, 0]
        assert not left[:96].view(8, 12)[1:, 1:].any()
        # Each level begins anew.
        assert left[96:].tolist() == [7] + [0] * 23 + [7]


class TestCompact:
    def test_features_are_within_half_a_step_and_never_clipped(self) -> None:
        large = Geometry(64, 64, ((40, 40),), 8, 3, 1)
        raw = make_outputs(1, large)
        raw.features[:, 2, 5] = 300.0  # more than 127 steps of the level
        preset = get_preset("compact")
        decoded = preset.decode(preset.encode(raw, large), large)
        spread = raw.features.std(correction=0)
        own = raw.features.abs().amax(dim=2, keepdim=True) / 127
        step = torch.maximum(spread * compact.FEATURE_STEP, own)
        assert ((decoded.features - raw.features).abs() <= step * 0.5001).all()
        assert own[0, 2, 0] > spread * compact.FEATURE_STEP > own[0, 3, 0]
        torch.testing.assert_close(decoded.features[:, 2, 5], raw.features[:, 2, 5])

    def test_deltas_are_within_half_a_step_and_large_ones_make_it_larger(self) -> None:
        raw = make_outputs()
        decoded = round_trip(get_preset("compact"), raw)
        assert (decoded.deltas - raw.deltas).abs().max() <= compact.DELTA_STEP / 2 + 1e-6
        raw.deltas[1, 7, 2] = 1000.0
        codes = get_preset("compact").encode(raw, GEOMETRY)
        assert codes["delta_scale"].tolist() == pytest.approx([1 / 128, 1 / 8, 1 / 128, 1 / 128])
        decoded = round_trip(get_preset("compact"), raw)
        assert decoded.deltas[1, 7, 2] == 1000.0

    def test_scores_are_those_of_balanced_to_within_a_byte(self) -> None:
        raw = make_outputs()
        compact_scores, balanced_scores = (
            round_trip(get_preset(name, scores_kept=60), raw).probabilities
            for name in ("compact", "balanced")
        )
        # (c / 255)^2: half a step is sqrt(p) / 255 at most; of a mean, 4.4%.
        limit = balanced_scores.sqrt() / 255 + 1e-5 + 0.05 * balanced_scores
        assert ((compact_scores - balanced_scores).abs() <= limit).all()

    def test_gaps_hold_every_index_that_is_allowed(self) -> None:
        index = torch.tensor([[0, 1, 255, 256, 70_000, 2**31 - 2]])
        assert torch.equal(compact._decode_gaps(compact._encode_gaps(index)), index)

    def test_a_smooth_coco_record_is_within_its_budget(self) -> None:
        # Neighbours correlated by 0.8, as in trained pyramids; white noise takes half as much more.
        raw = make_outputs(1, COCO)
        for (start, stop), (height, width) in zip(
            pairwise(COCO.level_offsets), COCO.level_sizes, strict=True
        ):
            level = raw.features[:, :, start:stop].unflatten(2, (height, width))
            smooth = torch.nn.functional.avg_pool2d(level, 5, stride=1, padding=2)
            raw.features[:, :, start:stop] = smooth.flatten(2)
        raw.deltas.mul_(0.2)
        preset = get_preset("compact")
        codes = preset.encode(raw, COCO)
        zstd = Zstd(level=ZSTD_LEVEL)
        size = 0
        for field in preset.fields(COCO):
            data = codes[field.name].numpy().tobytes()
            size += len(zstd.encode(data)) if field.compression else len(data)
        assert size <= 3.2e6 - 10_000
        # What a plan announces is about right, too.
        announced = preset.typical_bytes(COCO)
        assert announced.keys() == {one.name for one in preset.fields(COCO) if one.compression}
        assert 2.0e6 < sum(announced.values()) < size

    @pytest.mark.parametrize(
        ("height", "width", "num_classes", "measured", "tolerance"),
        [
            # Two trained teachers at the size that they were trained for.
            (96, 96, 5, 19_767, 0.05),
            (96, 128, 3, 26_281, 0.05),
            # The same at sizes that they have never seen.
            (192, 192, 5, 61_878, 0.12),
            (192, 256, 3, 88_087, 0.12),
            (384, 512, 5, 263_846, 0.12),
            (384, 512, 3, 309_159, 0.12),
            (640, 864, 3, 788_072, 0.12),
        ],
    )
    def test_small_views_are_announced_as_trained_teachers_left_them(
        self, height: int, width: int, num_classes: int, measured: int, tolerance: float
    ) -> None:
        sizes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]
        geometry = Geometry(
            height=height, width=width, level_sizes=tuple(sizes),
            channels=96, num_classes=num_classes, num_anchors=9,
        )  # fmt: skip
        announced = sum(get_preset("compact").typical_bytes(geometry).values())
        assert announced == pytest.approx(measured, rel=tolerance)

    @pytest.mark.parametrize("side", [8, 4000])
    def test_extreme_views_are_announced_within_what_is_possible(self, side: int) -> None:
        sizes = tuple((-(-side // stride),) * 2 for stride in (8, 16, 32, 64, 128))
        geometry = Geometry(
            height=side, width=side, level_sizes=sizes, channels=8, num_classes=1, num_anchors=1
        )
        preset = get_preset("compact")
        fields = {field.name: field.num_bytes for field in preset.fields(geometry)}
        for name, size in preset.typical_bytes(geometry).items():
            assert 0 <= size <= fields[name] + 50
