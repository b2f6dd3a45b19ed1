"""What every preset promises, and what each of them promises beyond that."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from storage import (
    CacheReader,
    CacheWriter,
    Geometry,
    IdentityError,
    Index,
    Manifest,
    Preset,
    RawOutputs,
    VersionError,
    build_index,
    get_preset,
    preset_names,
)
from storage.presets import balanced
from storage.presets.base import DecodedOutputs
from storage.presets.scores import _decode_logarithms, _encode_logarithms

GEOMETRY = Geometry(64, 96, ((8, 12), (4, 6), (1, 1)), 6, 7, 3)
COCO = Geometry(800, 1344, ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11)), 256, 80, 9)

# Every preset with its default parameters, and further parameters worth a run.
VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in preset_names()]
VARIANTS += [
    ("exact", {"dtype": "float16"}),
    ("balanced", {"scores_kept": 100}),
    ("compact", {"scores_kept": 100}),
]

# Largest error of a decoded value relative to the largest of its kind, and of a probability.
TOLERANCE = {"exact": (6e-4, 1e-3), "balanced": (5e-3, 2e-2), "compact": (5e-2, 2e-2)}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=VARIANTS, ids=lambda one: "-".join([one[0], *map(str, one[1].values())]))
def preset(request: pytest.FixtureRequest) -> Preset:
    name, parameters = request.param
    return get_preset(name, **parameters)


def make_outputs(count: int = 4, geometry: Geometry = GEOMETRY, seed: int = 0) -> RawOutputs:
    """Outputs like a trained teacher's: few anchors see something, the others are background."""
    rng = torch.Generator().manual_seed(seed)
    num_boxes, num_classes = geometry.num_boxes, geometry.num_classes
    logits = torch.randn(count, num_boxes, num_classes, generator=rng) - 6
    logits[:, ::41, 1] += 7
    features = torch.randn(count, geometry.channels, geometry.num_positions, generator=rng)
    return RawOutputs(
        features=features * torch.rand(count, geometry.channels, 1, generator=rng),
        logits=logits,
        deltas=torch.randn(count, num_boxes, 4, generator=rng),
    )


def round_trip(preset: Preset, raw: RawOutputs) -> DecodedOutputs:
    return preset.decode(preset.encode(raw, GEOMETRY), GEOMETRY)


def as_tensors(decoded: DecodedOutputs) -> dict[str, Tensor]:
    return {
        "features": decoded.features,
        "probabilities": decoded.probabilities,
        "deltas": decoded.deltas,
    }


def plan_of(preset: Preset, count: int) -> tuple[Manifest, Index]:
    """Plan a store of one bucket, two records a shard."""
    index = build_index(
        image_id=range(count), view=[0] * count, seed=range(count), height=[60] * count,
        width=[90] * count, flip=[False] * count, bucket=[GEOMETRY.name] * count,
        shard_records=2,
    )  # fmt: skip
    manifest = Manifest.create(
        preset=preset, geometries=[GEOMETRY], shard_records=2, num_detections=5,
        teacher={}, dataset={}, augmentation={}, numerics={},
    )  # fmt: skip
    return manifest, index


class TestContract:
    """Runs over every preset: a new one joins by being there."""

    def test_codes_are_those_that_the_fields_announce(self, preset: Preset) -> None:
        codes = preset.encode(make_outputs(), GEOMETRY)
        fields = preset.fields(GEOMETRY)
        assert [field.name for field in fields] == list(codes)
        for field in fields:
            array = codes[field.name].numpy()
            assert (array.shape, array.dtype) == ((4, *field.shape), np.dtype(field.dtype))

    def test_decoding_restores_shapes_and_values(self, preset: Preset) -> None:
        raw = make_outputs()
        decoded = as_tensors(round_trip(preset, raw))
        values, probability = TOLERANCE[preset.name]
        original = {**vars(raw), "probabilities": raw.logits.sigmoid()}
        for name, tensor in decoded.items():
            assert tensor.dtype == torch.float32
            limit = probability if name == "probabilities" else values * original[name].abs().max()
            torch.testing.assert_close(tensor, original[name], rtol=0, atol=float(limit))

    def test_probabilities_stay_in_the_unit_interval(self, preset: Preset) -> None:
        raw = make_outputs()
        raw.logits[0, 0, 0], raw.logits[0, 0, 1] = 40.0, -40.0
        probabilities = round_trip(preset, raw).probabilities
        assert probabilities.min() >= 0 and probabilities.max() <= 1

    def test_a_record_does_not_depend_on_its_batch(self, preset: Preset) -> None:
        raw = make_outputs(4)
        together = preset.encode(raw, GEOMETRY)
        alone = preset.encode(
            RawOutputs(**{name: one[2:3] for name, one in vars(raw).items()}), GEOMETRY
        )
        for name, codes in alone.items():
            assert torch.equal(codes[0], together[name][2]), name

    def test_encoding_changes_nothing_and_shares_no_memory(self, preset: Preset) -> None:
        raw = make_outputs()
        before = {name: tensor.clone() for name, tensor in vars(raw).items()}
        codes = preset.encode(raw, GEOMETRY)
        kept = {name: tensor.clone() for name, tensor in codes.items()}
        for name, tensor in vars(raw).items():
            assert torch.equal(tensor, before[name]), name
            tensor.fill_(float("nan"))  # as detectron2 does with its logits
        for name, tensor in codes.items():
            assert torch.equal(tensor, kept[name]), name

    def test_decoding_does_not_change_the_codes(self, preset: Preset) -> None:
        codes = preset.encode(make_outputs(), GEOMETRY)
        before = {name: tensor.clone() for name, tensor in codes.items()}
        preset.decode(codes, GEOMETRY)
        assert all(torch.equal(codes[name], before[name]) for name in codes)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_any_floating_point_type_is_taken(self, preset: Preset, dtype: torch.dtype) -> None:
        raw = make_outputs(2)
        lower = RawOutputs(**{name: one.to(dtype) for name, one in vars(raw).items()})
        wide = RawOutputs(**{name: one.to(dtype).float() for name, one in vars(raw).items()})
        encoded = preset.encode(lower, GEOMETRY)
        for name, codes in preset.encode(wide, GEOMETRY).items():
            assert torch.equal(encoded[name], codes), name

    def test_strided_outputs_are_taken(self, preset: Preset) -> None:
        raw = make_outputs(2)
        strided = RawOutputs(**{name: one.mT.contiguous().mT for name, one in vars(raw).items()})
        expected = preset.encode(raw, GEOMETRY)
        for name, codes in preset.encode(strided, GEOMETRY).items():
            assert torch.equal(codes, expected[name]), name

    @pytest.mark.parametrize("value", [0.0, 1e-30, -3.5])
    def test_constant_outputs_survive(self, preset: Preset, value: float) -> None:
        raw = make_outputs(2)
        for tensor in vars(raw).values():
            tensor.fill_(value)
        decoded = round_trip(preset, raw)
        torch.testing.assert_close(decoded.features, raw.features, rtol=1e-3, atol=1e-30)
        # A kept score of compact has one byte.
        tolerance = {"rtol": 2e-2, "atol": 3e-3} if preset.name == "compact" else {"rtol": 1e-3}
        torch.testing.assert_close(
            decoded.probabilities, raw.logits.sigmoid(), **{"atol": 5e-5, **tolerance}
        )

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("name", ["features", "logits", "deltas"])
    def test_outputs_that_are_not_finite_are_refused(
        self, preset: Preset, name: str, bad: float
    ) -> None:
        raw = make_outputs(2)
        getattr(raw, name)[1, 0, 0] = bad
        with pytest.raises(ValueError, match=f"teacher's {name} holds NaN or infinity"):
            preset.encode(raw, GEOMETRY)

    def test_outputs_of_another_geometry_are_refused(self, preset: Preset) -> None:
        raw = make_outputs(2)
        short = RawOutputs(features=raw.features[..., :-1], logits=raw.logits, deltas=raw.deltas)
        with pytest.raises(ValueError, match=r"teacher's features: got .* expected"):
            preset.encode(short, GEOMETRY)

    def test_codes_of_another_geometry_are_refused(self, preset: Preset) -> None:
        codes = preset.encode(make_outputs(2), GEOMETRY)
        first = preset.fields(GEOMETRY)[0].name
        with pytest.raises(ValueError, match=f"preset {preset.name}: field {first}"):
            preset.decode({**codes, first: codes[first][..., :-1]}, GEOMETRY)
        with pytest.raises(ValueError, match=f"{first} is absent"):
            preset.decode({}, GEOMETRY)

    def test_parameters_make_the_same_preset_again(self, preset: Preset) -> None:
        again = get_preset(preset.name, **preset.parameters)
        assert again == preset
        assert again.fields(GEOMETRY) == preset.fields(GEOMETRY)

    def test_codes_pass_through_a_store(self, preset: Preset, tmp_path: Any) -> None:
        count = 3
        manifest, index = plan_of(preset, count)
        writer = CacheWriter(tmp_path / "cache", manifest, index)
        codes = preset.encode(make_outputs(count), GEOMETRY)
        for shard in writer.missing():
            records = writer.records_of(shard)
            arrays = {name: tensor.numpy()[records] for name, tensor in codes.items()}
            arrays["detections"] = np.zeros((len(records), 5, 6), dtype=np.float32)
            arrays["pixels_crc32c"] = records.astype(np.uint32)
            arrays["pixels_sample"] = np.zeros((len(records), 16, 16, 3), dtype=np.uint8)
            writer.write(shard, arrays)
        reader = CacheReader(tmp_path / "cache")
        assert reader.codec == preset
        read = reader.read_many(range(count))
        stacked = {name: torch.from_numpy(np.stack([one[name] for one in read])) for name in codes}
        decoded = as_tensors(reader.codec.decode(stacked, GEOMETRY))
        for name, tensor in as_tensors(preset.decode(codes, GEOMETRY)).items():
            assert torch.equal(decoded[name], tensor), name

    def test_records_of_another_version_are_not_decoded(
        self, preset: Preset, tmp_path: Path
    ) -> None:
        manifest, index = plan_of(preset, 1)
        assert manifest.codec == preset.codec
        writer = CacheWriter(tmp_path / "cache", replace(manifest, preset_version=2), index)
        assert writer.claim(writer.missing()[0], "a dump", 60)  # else it is begun again
        with pytest.raises(VersionError, match=rf"version 2 of preset {preset.name}, .* version 1"):
            _ = CacheReader(tmp_path / "cache").codec
        with pytest.raises(IdentityError, match=r"codec\.version: stored 2, wanted 1"):
            CacheWriter(tmp_path / "cache", manifest, index)

    @pytest.mark.parametrize("device", DEVICES)
    def test_work_is_done_on_the_device_of_the_outputs(self, preset: Preset, device: str) -> None:
        raw = make_outputs()
        there = RawOutputs(**{name: one.to(device) for name, one in vars(raw).items()})
        codes = preset.encode(there, GEOMETRY)
        assert {tensor.device.type for tensor in codes.values()} == {device}
        decoded = as_tensors(preset.decode(codes, GEOMETRY))
        assert {tensor.device.type for tensor in decoded.values()} == {device}
        values, probability = TOLERANCE[preset.name]
        limit = max(values * 4, probability)
        for name, tensor in as_tensors(round_trip(preset, raw)).items():
            torch.testing.assert_close(decoded[name].cpu(), tensor, rtol=0, atol=limit)


def test_unknown_presets_and_parameters_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="preset 'best': expected one of balanced, compact, exact"):
        get_preset("best")
    with pytest.raises(ValueError, match=r"preset exact: .*colour"):
        get_preset("exact", colour="red")
    with pytest.raises(ValueError, match=r"dtype 'int8', expected one of .*float16"):
        get_preset("exact", dtype="int8")
    for name in ("balanced", "compact"):
        with pytest.raises(ValueError, match=f"preset {name}: scores_kept -1"):
            get_preset(name, scores_kept=-1)


def test_exact_float32_is_exact() -> None:
    raw = make_outputs()
    decoded = round_trip(get_preset("exact"), raw)
    assert torch.equal(decoded.features, raw.features)
    each = torch.stack([one.sigmoid() for one in raw.logits])
    assert torch.equal(decoded.probabilities, each)
    assert torch.equal(decoded.deltas, raw.deltas)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_exact_record_decodes_to_the_same_bits_in_any_batch(dtype: str) -> None:
    preset = get_preset("exact", dtype=dtype)
    codes = preset.encode(make_outputs(64), GEOMETRY)
    together = as_tensors(preset.decode(codes, GEOMETRY))
    for n in range(64):
        one = {name: field[n : n + 1] for name, field in codes.items()}
        for name, alone in as_tensors(preset.decode(one, GEOMETRY)).items():
            assert torch.equal(alone[0], together[name][n]), (n, name)


@pytest.mark.parametrize("name", ["features", "logits", "deltas"])
def test_exact_float16_refuses_what_it_cannot_hold(name: str) -> None:
    raw = make_outputs()
    getattr(raw, name)[0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=f"{name} exceeds the range of float16.*CACHE.DTYPE"):
        get_preset("exact", dtype="float16").encode(raw, GEOMETRY)


def test_a_balanced_coco_record_is_within_its_budget() -> None:
    fields = get_preset("balanced").fields(COCO)
    assert sum(field.num_bytes for field in fields) <= 8e6 - 10_000  # the rest is for common fields


def test_balanced_features_are_within_half_a_step() -> None:
    raw = make_outputs()
    decoded = round_trip(get_preset("balanced"), raw)
    offsets = GEOMETRY.level_offsets
    for start, stop in pairwise(offsets):
        level = raw.features[:, :, start:stop]
        step = level.abs().amax(dim=2, keepdim=True) / 127
        assert ((decoded.features[:, :, start:stop] - level).abs() <= step * 0.5001).all()


class TestBalancedScores:
    def test_the_largest_are_kept_and_the_largest_dropped_bounds_the_others(self) -> None:
        raw = make_outputs()
        preset = get_preset("balanced", scores_kept=50)
        codes = preset.encode(raw, GEOMETRY)
        decoded = preset.decode(codes, GEOMETRY).probabilities.flatten(1)
        true = raw.logits.sigmoid().flatten(1)
        ordered = true.sort(dim=1, descending=True).values
        assert torch.equal(codes["score_bound"], ordered[:, 50])
        kept = true >= ordered[:, 49:50]
        assert (kept.sum(dim=1) == 50).all()
        error = (decoded - true).abs()
        assert error[kept].max() <= 0.5 / balanced.SCORE_LIMIT + 1e-7
        assert (error <= codes["score_bound"][:, None] + 1e-7)[~kept].all()

    def test_indices_ascend_and_agree_with_a_plain_top_k(self) -> None:
        raw = make_outputs()
        index = get_preset("balanced", scores_kept=64).encode(raw, GEOMETRY)["score_index"]
        expected = raw.logits.flatten(1).topk(64, dim=1).indices.sort(dim=1).values
        assert torch.equal(index.long(), expected)

    def test_the_sum_of_an_anchors_dropped_probabilities_is_kept(self) -> None:
        # What the response loss needs: it is linear in the teacher's probabilities.
        raw = make_outputs()
        decoded = round_trip(get_preset("balanced", scores_kept=50), raw)
        true, got = raw.logits.sigmoid().sum(dim=2), decoded.probabilities.sum(dim=2)
        # Half a step of the code is 2.2%, and one class that dominates is rounded alike.
        assert ((got - true).abs() / true).max() < 0.025
        assert abs(float(got.sum() / true.sum()) - 1) < 0.002

    def test_ties_keep_exactly_as_many_as_announced(self) -> None:
        raw = make_outputs()
        raw.logits.fill_(-4.0)
        preset = get_preset("balanced", scores_kept=50)
        codes = preset.encode(raw, GEOMETRY)
        assert all(len(set(row.tolist())) == 50 for row in codes["score_index"])
        probabilities = preset.decode(codes, GEOMETRY).probabilities
        torch.testing.assert_close(probabilities, raw.logits.sigmoid(), rtol=1e-2, atol=0)

    def test_keeping_all_leaves_nothing_to_the_rest(self) -> None:
        raw = make_outputs()
        dense = GEOMETRY.num_boxes * GEOMETRY.num_classes
        preset = get_preset("balanced", scores_kept=dense + 1)
        codes = preset.encode(raw, GEOMETRY)
        assert codes["score_index"].shape[1] == dense
        assert not codes["score_rest"].any() and not codes["score_bound"].any()
        torch.testing.assert_close(
            preset.decode(codes, GEOMETRY).probabilities, raw.logits.sigmoid(), rtol=0, atol=2e-5
        )

    def test_every_code_of_the_rest_decodes_to_itself(self) -> None:
        codes = torch.arange(256, dtype=torch.uint8)[None]
        bound = torch.tensor([0.037])
        means = _decode_logarithms(codes, bound, 16)
        assert torch.equal(_encode_logarithms(means, bound, 16), codes)
        assert means[0, 0] == 0 and means[0, 255] == bound[0]

    def test_the_number_kept_follows_the_documented_rule(self) -> None:
        assert get_preset("balanced").num_kept(COCO) == COCO.num_boxes / 4
        assert get_preset("compact").num_kept(COCO) == COCO.num_boxes / 8
        small = Geometry(64, 64, ((8, 8),), 4, 3, 9)
        assert get_preset("balanced").num_kept(small) == 8 * 8 * 9 * 3

    def test_more_scores_than_an_index_can_count_are_refused(self) -> None:
        huge = Geometry(8000, 8000, ((4000, 4000),), 1, 80, 9)
        for name in ("balanced", "compact"):
            with pytest.raises(ValueError, match=r"8000x8000 has 2\^31 class scores"):
                get_preset(name).fields(huge)
