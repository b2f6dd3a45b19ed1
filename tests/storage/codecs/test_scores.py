"""Sparse scores: what is kept, what stands for the others, and where neither pays."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from storage import Codec, Geometry, Signal
from storage.codecs import dropped_scores
from storage.codecs.dense import DenseScores
from storage.codecs.dropped_scores import ScoreGrid, _decode_logarithms, _encode_logarithms
from storage.codecs.sparse_scores import (
    KeptScores,
    PackedScores,
    SparseScores,
    decode_gaps,
    encode_gaps,
)
from tests.storage.codecs.samples import (
    COCO,
    COCO_SIGNALS,
    GEOMETRY,
    ONE_CLASS,
    SCORES,
    make_values,
    round_trip,
)


class TestModel:
    """What stands for the scores that are not kept; the same for both codecs."""

    GRID = ScoreGrid(geometry=Geometry(64, 64, ((8, 8), (4, 4))), num_anchors=3, num_classes=20)

    def model(self, logits: Tensor, num_kept: int) -> Tensor:
        index, value, dropped = dropped_scores.keep_largest(logits, num_kept)
        codes = dropped_scores.encode_rest(dropped, index, self.GRID, 16)
        codes["power"] = dropped_scores.unpack_power(codes["power"], self.GRID.num_boxes)
        return dropped_scores.decode_scores(index, value, codes, self.GRID, 16)

    def logits(self, sharpness: float) -> Tensor:
        """Scores whose classes have the same order everywhere, peaked to a different degree."""
        rng = torch.Generator().manual_seed(3)
        common = torch.randn(self.GRID.num_classes, generator=rng)
        degree = 1 + sharpness * torch.rand(1, self.GRID.num_boxes, 1, generator=rng)
        return degree * common - 5

    def test_groups_of_a_grid_are_made_once_and_stay_as_they_are(self) -> None:
        groups = dropped_scores._groups(self.GRID, torch.device("cpu"))
        self.model(self.logits(1.0), 10)
        assert groups.tolist() == 64 * [0, 1, 2] + 16 * [3, 4, 5]
        assert dropped_scores._groups(self.GRID, torch.device("cpu")) is groups

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
        logits = torch.randn(2, self.GRID.num_boxes, 20) * 2 - 4
        for num_kept in (1, 300, self.GRID.num_boxes * 20 - 1):
            got, true = self.model(logits, num_kept).sum(dim=2), logits.sigmoid().sum(dim=2)
            # Half a step of the mean; where the model is cut at the bound, a little more.
            assert ((got - true).abs() / true).quantile(0.95) < 0.03

    def test_no_dropped_score_is_off_by_more_than_the_bound(self) -> None:
        generator = torch.Generator().manual_seed(5)
        logits = torch.randn(2, self.GRID.num_boxes, 20, generator=generator) * 4 - 2
        # Anchors whose dropped classes are few, alike and large, where others have a clear order.
        logits[:, ::7, :18] = -20.0
        logits[:, ::7, 18:] = 1.0
        index, _, dropped = dropped_scores.keep_largest(logits, 900)
        bound = dropped_scores.encode_rest(dropped, index, self.GRID, 16)["bound"]
        got, true = self.model(logits, 900), logits.sigmoid()
        assert ((got - true).abs().amax(dim=(1, 2)) <= bound + 1e-6).all()
        dropped = torch.ones_like(true).flatten(1).scatter(1, index, 0.0).view_as(true)
        assert ((got * dropped).amax(dim=(1, 2)) <= bound + 1e-6).all()

    def test_one_class_alone_is_modelled_by_its_mean(self) -> None:
        logits = torch.randn(1, *ONE_CLASS.shape(GEOMETRY)) - 3
        got = round_trip(SparseScores(kept=5), ONE_CLASS, logits)
        assert ((got - logits.sigmoid()).abs() / logits.sigmoid()).max() < 0.025

    def test_every_code_of_the_rest_decodes_to_itself(self) -> None:
        codes = torch.arange(256, dtype=torch.uint8)[None]
        bound = torch.tensor([0.037])
        means = _decode_logarithms(codes, bound, 16)
        assert torch.equal(_encode_logarithms(means, bound, 16), codes)
        assert means[0, 0] == 0 and means[0, 255] == bound[0]


def sparse(logits: Tensor, kept: int) -> tuple[dict[str, Tensor], Tensor]:
    """Codes and decoded probabilities."""
    codec = SparseScores(kept=kept)
    codes = codec.encode(logits, SCORES, GEOMETRY)
    return codes, codec.decode(codes, SCORES, GEOMETRY)


class TestSparse:
    def test_the_largest_are_kept_and_the_largest_dropped_bounds_the_others(self) -> None:
        logits = make_values(SCORES)
        codes, decoded = sparse(logits, 50)
        decoded, true = decoded.flatten(1), logits.sigmoid().flatten(1)
        ordered = true.sort(dim=1, descending=True).values
        assert torch.equal(codes["bound"], ordered[:, 50])
        kept = true >= ordered[:, 49:50]
        assert (kept.sum(dim=1) == 50).all()
        error = (decoded - true).abs()
        assert error[kept].max() <= 0.5 / SparseScores.value_limit + 1e-7
        assert (error <= codes["bound"][:, None] + 1e-7)[~kept].all()

    def test_indices_ascend_and_agree_with_a_plain_top_k(self) -> None:
        logits = make_values(SCORES)
        index = sparse(logits, 64)[0]["index"]
        expected = logits.flatten(1).topk(64, dim=1).indices.sort(dim=1).values
        assert torch.equal(index.long(), expected)

    def test_the_sum_of_an_anchors_dropped_probabilities_is_kept(self) -> None:
        # What the response loss needs: it is linear in the teacher's probabilities.
        logits = make_values(SCORES)
        true, got = (one.sum(dim=2) for one in (logits.sigmoid(), sparse(logits, 50)[1]))
        # Half a step of the code is 2.2%, and one class that dominates is rounded alike.
        assert ((got - true).abs() / true).max() < 0.025
        assert abs(float(got.sum() / true.sum()) - 1) < 0.002

    def test_ties_keep_exactly_as_many_as_announced(self) -> None:
        logits = torch.full((4, *SCORES.shape(GEOMETRY)), -4.0)
        codes, probabilities = sparse(logits, 50)
        assert all(len(set(row.tolist())) == 50 for row in codes["index"])
        torch.testing.assert_close(probabilities, logits.sigmoid(), rtol=1e-2, atol=0)

    def test_keeping_all_leaves_nothing_to_the_rest(self) -> None:
        logits = make_values(SCORES)
        codes, probabilities = sparse(logits, 1 << 20)
        assert codes["index"].shape[1] == logits[0].numel()
        assert not codes["rest"].any() and not codes["bound"].any()
        torch.testing.assert_close(probabilities, logits.sigmoid(), rtol=0, atol=2e-5)


class TestPacked:
    def test_scores_are_those_of_sparse_to_within_a_byte(self) -> None:
        logits = make_values(SCORES)
        coarse, fine = (
            round_trip(codec(kept=60), SCORES, logits) for codec in (PackedScores, SparseScores)
        )
        # (c / 255)^2: half a step is sqrt(p) / 255 at most; of a mean, 4.4%.
        limit = fine.sqrt() / 255 + 1e-5 + 0.05 * fine
        assert ((coarse - fine).abs() <= limit).all()

    def test_gaps_hold_every_index_that_is_allowed(self) -> None:
        index = torch.tensor([[0, 1, 255, 256, 70_000, 2**31 - 2]])
        assert torch.equal(decode_gaps(encode_gaps(index)), index)


def sizes(codec: Codec, signal: Signal, geometry: Geometry) -> Mapping[str, int]:
    return {one.name: one.num_bytes for one in codec.fields(signal, geometry)}


class TestNumberKept:
    def test_it_follows_the_documented_rule(self) -> None:
        coco = ScoreGrid.of(COCO_SIGNALS[1], COCO)
        assert SparseScores().num_kept(coco) == coco.num_boxes / 4
        assert PackedScores().num_kept(coco) == coco.num_boxes / 8
        three = Signal("scores", "scores", {"anchors": 9, "classes": 3})
        for side, expected in ((8, 8 * 8 * 9 * 3), (32, 8192), (64, 64 * 64 * 9 // 4)):
            grid = ScoreGrid.of(three, Geometry(512, 512, ((side, side),)))
            assert SparseScores().num_kept(grid) == expected
        grid = ScoreGrid.of(three, Geometry(512, 512, ((32, 32),)))
        assert PackedScores().num_kept(grid) == 4096

    def test_a_number_of_ones_own_goes_before_it(self) -> None:
        coco = ScoreGrid.of(COCO_SIGNALS[1], COCO)
        assert SparseScores(kept=7).num_kept(coco) == PackedScores(kept=7).num_kept(coco) == 7

    @pytest.mark.parametrize("kept", [-1, 2.5, "many", True])
    def test_what_is_no_number_is_refused(self, kept: object) -> None:
        with pytest.raises(ValueError, match=r"scores_kept: got .* expected an integer >= 0"):
            SparseScores(kept=kept)  # type: ignore[arg-type]

    def test_more_scores_than_an_index_can_count_are_refused(self) -> None:
        huge = Geometry(8000, 8000, ((4000, 4000),))
        for codec in (SparseScores(), PackedScores()):
            with pytest.raises(ValueError, match=r"8000x8000 has 2\^31 class scores"):
                codec.fields(COCO_SIGNALS[1], huge)


class TestOneClass:
    """Logits in 16 bits take less than index, value and model of the same anchors."""

    LARGE = Geometry(800, 1344, ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11)))

    def signal(self, classes: int, anchors: int = 5) -> Signal:
        return Signal("scores", "scores", {"anchors": anchors, "classes": classes})

    @pytest.mark.parametrize("codec", [SparseScores(), PackedScores()], ids=lambda one: one.name)
    def test_dense_is_smaller_where_it_is_chosen_and_larger_where_it_is_not(
        self, codec: KeptScores
    ) -> None:
        one, few = self.signal(1), self.signal(2)
        anchors, _ = one.shape(self.LARGE)
        assert anchors > 100_000
        assert sizes(codec, one, self.LARGE) == {"values": 2 * anchors}
        by_rule = type(codec)(kept=codec.num_kept(ScoreGrid.of(one, self.LARGE)))
        assert 2 * anchors < sum(sizes(by_rule, one, self.LARGE).values())
        sparse = sizes(codec, few, self.LARGE)
        assert "values" not in sparse or len(sparse) > 1
        assert sum(sparse.values()) < sum(
            sizes(DenseScores(dtype="float16"), few, self.LARGE).values()
        )

    @pytest.mark.parametrize("codec", [SparseScores(), PackedScores()], ids=lambda one: one.name)
    def test_dense_decodes_to_the_sigmoid_of_float16_logits(self, codec: KeptScores) -> None:
        logits = make_values(ONE_CLASS) * 3
        each = torch.stack([one.half().float().sigmoid() for one in logits])
        assert torch.equal(round_trip(codec, ONE_CLASS, logits), each)

    @pytest.mark.parametrize("codec", [SparseScores, PackedScores])
    def test_a_number_of_ones_own_keeps_it_sparse(self, codec: type[KeptScores]) -> None:
        assert codec().is_dense(ONE_CLASS) and not codec(kept=40).is_dense(ONE_CLASS)
        codes = codec(kept=40).encode(make_values(ONE_CLASS), ONE_CLASS, GEOMETRY)
        assert "values" not in codes and codes["value"].shape == (4, 40)

    @pytest.mark.parametrize("codec", [SparseScores(), PackedScores()], ids=lambda one: one.name)
    def test_several_classes_are_sparse(self, codec: KeptScores) -> None:
        assert [codec.is_dense(self.signal(classes)) for classes in (1, 2, 80)] == [
            True, False, False,
        ]  # fmt: skip
