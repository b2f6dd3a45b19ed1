"""Presets: each has a codec for every kind, records have the size that it promises; registering."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from numcodecs import Zstd  # type: ignore[import-untyped]

from storage import (
    Codec,
    Geometry,
    Preset,
    RecordCodec,
    Signal,
    get_preset,
    register_codec,
    register_preset,
)
from storage.codecs.dense import Dense
from storage.codecs.presets import CODECS, PRESETS
from storage.codecs.record import joined
from storage.layout import ZSTD_LEVEL
from storage.schema import RECORD
from storage.signals import KINDS
from tests.storage.codecs.samples import COCO, COCO_SIGNALS, SIGNALS, make_values


def retinanet(channels: int, classes: int, anchors: int = 9) -> list[Signal]:
    return [
        Signal("features", "maps", {"channels": channels}),
        Signal("scores", "scores", {"anchors": anchors, "classes": classes}),
        Signal("deltas", "deltas", {"anchors": anchors}),
    ]


def fcos(channels: int, classes: int) -> list[Signal]:
    centerness = Signal("centerness", "scores", {"anchors": 1, "classes": 1})
    return [*retinanet(channels, classes, anchors=1), centerness]


def codec_of(preset: str, signals: list[Signal] | tuple[Signal, ...]) -> RecordCodec:
    return RecordCodec.of_preset(get_preset(preset), signals, 100)


def pyramid(height: int, width: int) -> Geometry:
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]
    return Geometry(height, width, tuple(sizes))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("classes", [1, 80])
def test_a_record_of_fcos_is_no_larger_than_one_of_retinanet(preset: str, classes: int) -> None:
    ours, theirs = (
        sum(field.num_bytes for array in codec.arrays(COCO) for field in array.fields)
        for codec in (
            codec_of(preset, fcos(256, classes)),
            codec_of(preset, retinanet(256, classes)),
        )
    )
    assert ours < theirs


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_codec_for_every_kind(name: str) -> None:
    preset = get_preset(name)
    assert preset.table.keys() == KINDS.keys()
    for signal in SIGNALS:
        assert signal.kind in preset.codec_for(signal).kinds
    assert {signal.kind for signal in SIGNALS} == KINDS.keys()
    assert all(type(codec) is CODECS[codec.name] for codec in preset.table.values())


def test_unknown_presets_and_options_are_refused_with_the_choices() -> None:
    said = r"CACHE\.PRESET 'best': expected one of balanced, compact, exact"
    with pytest.raises(ValueError, match=said):
        get_preset("best")
    with pytest.raises(ValueError, match=r"preset exact: .*colour"):
        get_preset("exact", colour="red")
    with pytest.raises(ValueError, match=r"dtype 'int8', expected one of .*float16"):
        get_preset("exact", dtype="int8")
    for name in ("balanced", "compact"):
        with pytest.raises(ValueError, match="scores_kept: got -1"):
            get_preset(name, scores_kept=-1)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"deltas": Dense()}, "no codec for signal features of the kind maps, only for deltas"),
        (
            {"maps": CODECS["sparse_scores"]()},
            "signal features: codec sparse_scores does not hold the kind maps, only scores",
        ),
    ],
    ids=["absent", "unfit"],
)
def test_a_kind_that_a_preset_cannot_hold_is_refused(table: dict[str, Codec], said: str) -> None:
    with pytest.raises(ValueError, match=f"^preset mine: {said}$"):
        Preset(name="mine", table=table).codec_for(SIGNALS[0])


class TestSizes:
    def test_a_balanced_coco_record_is_within_its_budget(self) -> None:
        arrays = codec_of("balanced", COCO_SIGNALS).arrays(COCO)
        assert sum(one.num_bytes for one in arrays) <= 8e6
        # What is small costs one small request.
        assert arrays[-1].name == RECORD and arrays[-1].num_bytes < 20_000

    def test_a_smooth_compact_coco_record_is_within_its_budget(self) -> None:
        values = {one.name: make_values(one, COCO, 1) for one in COCO_SIGNALS}
        # Neighbours correlated by 0.8, as in trained pyramids; white noise takes half as much more.
        features = values["features"]
        for (start, stop), (height, width) in zip(
            pairwise(COCO.level_offsets), COCO.level_sizes, strict=True
        ):
            level = features[:, :, start:stop].unflatten(2, (height, width))
            smooth = torch.nn.functional.avg_pool2d(level, 5, stride=1, padding=2)
            features[:, :, start:stop] = smooth.flatten(2)
        values["deltas"].mul_(0.2)
        codec = codec_of("compact", COCO_SIGNALS)
        arrays = {one.name: one for one in codec.arrays(COCO)}
        zstd, size = Zstd(level=ZSTD_LEVEL), 0
        for name, data in joined(list(arrays.values()), codec.encode(values, COCO)):
            assert arrays[name].compression == "zstd"
            size += len(zstd.encode(data.numpy().tobytes()))
        assert size <= 3.2e6 - 10_000
        # What a plan announces is about right, too.
        announced = codec.typical_bytes(COCO)
        assert announced.keys() == {one.name for one in arrays.values() if one.compression}
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
        codec = codec_of("compact", retinanet(96, num_classes))
        announced = sum(codec.typical_bytes(pyramid(height, width)).values())
        assert announced == pytest.approx(measured, rel=tolerance)

    @pytest.mark.parametrize("side", [8, 4000])
    @pytest.mark.parametrize("classes", [1, 2])
    def test_extreme_views_are_announced_within_what_is_possible(
        self, side: int, classes: int
    ) -> None:
        codec, geometry = codec_of("compact", retinanet(8, classes, 1)), pyramid(side, side)
        arrays = {one.name: one.num_bytes for one in codec.arrays(geometry)}
        for name, size in codec.typical_bytes(geometry).items():
            assert 0 <= size <= arrays[name] + 50


@dataclass(frozen=True, kw_only=True)
class Mine(Dense):
    """A user's codec."""

    name: ClassVar[str] = "mine"


@pytest.fixture
def _registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries of the test's own."""
    monkeypatch.setattr("storage.codecs.presets.CODECS", dict(CODECS))
    monkeypatch.setattr("storage.codecs.presets.PRESETS", dict(PRESETS))


@pytest.mark.usefixtures("_registries")
class TestRegistering:
    def test_a_preset_of_ones_own_takes_its_options(self) -> None:
        register_codec(Mine)
        register_preset("own", lambda dtype="float32": {"maps": Mine(dtype=dtype)})
        preset = get_preset("own", dtype="float16")
        assert preset.codec_for(SIGNALS[0]) == Mine(dtype="float16")
        with pytest.raises(ValueError, match=r"expected one of balanced, compact, exact, own$"):
            get_preset("other")

    def test_the_same_codec_may_be_registered_again(self) -> None:
        assert register_codec(register_codec(Mine)) is Mine

    def test_another_codec_of_the_same_name_is_refused_naming_both(self) -> None:
        register_codec(Mine)
        other = type("Other", (Mine,), {"__module__": "theirs"})
        said = (
            f"codec 'mine' is registered twice: {__name__}.Mine and theirs.Other; give one of them"
            " another name"
        )
        with pytest.raises(ValueError, match=re.escape(said)):
            register_codec(other)

    def test_a_preset_of_a_codec_that_is_not_registered_is_refused(self) -> None:
        register_preset("own", lambda: {"maps": Mine()})
        said = (
            f"preset own: codec {__name__}.Mine is not registered, and nobody could read its"
            " records; put @register_codec above it"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            get_preset("own")
        register_codec(Mine)
        assert get_preset("own").codec_for(SIGNALS[0]) == Mine()
        # By the name of another one, which its records would be read with.
        register_preset("theirs", lambda: {"maps": type("Unnamed", (Mine,), {})()})
        with pytest.raises(
            ValueError, match=r"^preset theirs: codec .*\.Unnamed is not registered"
        ):
            get_preset("theirs")

    @pytest.mark.parametrize(
        ("table", "said"),
        [
            ({"maps": Mine}, "maps: expected a codec, got <class"),
            ([("maps", Dense())], "expected a dict from kinds to codecs, got list"),
        ],
        ids=["a class", "a list"],
    )
    def test_a_preset_that_is_no_table_of_codecs_is_refused(self, table: Any, said: str) -> None:
        register_preset("own", lambda: table)
        with pytest.raises(ValueError, match=f"^preset own: {said}"):
            get_preset("own")

    @pytest.mark.parametrize(
        ("base", "parts", "said"),
        [
            (Codec, {"kinds": ("maps",)}, "expected its name in `name`, got None"),
            (Codec, {"name": "mine"}, r"expected in `kinds` a tuple .* maps, .*; got None"),
            (Mine, {"kinds": ("map",)}, r"expected in `kinds` .*; got \('map',\)"),
            (Mine, {"kinds": "maps"}, "expected in `kinds` .*; got 'maps'"),
            (Mine, {"kinds": ()}, r"expected in `kinds` .*; got \(\)"),
            (object, {}, "expected a class that derives from storage.Codec"),
        ],
    )
    def test_a_class_without_its_name_or_kinds_is_refused(
        self, base: type, parts: dict[str, Any], said: str
    ) -> None:
        codec = type("Lacking", (base,), {"__module__": "theirs", **parts})
        with pytest.raises(ValueError, match=f"^codec theirs.Lacking: {said}"):
            register_codec(codec)
        assert "mine" not in CODECS

    def test_another_preset_of_the_same_name_is_refused_naming_both(self) -> None:
        def table() -> dict[str, Dense]:
            return {}

        said = r"preset 'exact' is registered twice: .*presets\._exact and .*<locals>\.table"
        with pytest.raises(ValueError, match=said):
            register_preset("exact", table)
        assert PRESETS["exact"] is not table
