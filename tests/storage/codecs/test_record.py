"""Whole records: of signals, through a store and back, and what a reader does not decode."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storage import (
    Array,
    CacheReader,
    CacheWriter,
    Field,
    FormatError,
    Geometry,
    IdentityError,
    Index,
    Manifest,
    RecordCodec,
    Signal,
    VersionError,
    build_index,
    canonical,
    checksums,
    get_preset,
    verify,
)
from storage.codecs.base import Codec, Codes
from storage.codecs.dense import Dense
from storage.codecs.placing import Placing
from storage.codecs.presets import PRESETS
from storage.codecs.record import joined
from tests.storage.cases import rewrite_root
from tests.storage.codecs.samples import (
    BOXES,
    DELTAS,
    FEATURES,
    GEOMETRIES,
    GEOMETRY,
    ROWS,
    SCORES,
    make_values,
    placed,
    record_of,
)
from tests.storage.forging import FUZZ, HOSTILE, JSON, paths, replaced

# A record of every kind, by name, as a manifest has it.
SIGNALS = (DELTAS, FEATURES, ROWS, BOXES, SCORES)
SHARD_RECORDS = 2


@pytest.fixture(params=PRESETS)
def codec(request: pytest.FixtureRequest) -> RecordCodec:
    return RecordCodec.of_preset(get_preset(request.param), SIGNALS, 5)


def values_of(count: int = 3, geometry: Geometry = GEOMETRY) -> dict[str, Tensor]:
    return {one.name: make_values(one, geometry, count, seed) for seed, one in enumerate(SIGNALS)}


def plan_of(codec: RecordCodec, count: int = 3, **changes: Any) -> tuple[Manifest, Index]:
    """Plan a store of one bucket."""
    index = build_index(
        image_id=range(count), view=[0] * count, seed=range(count), height=[60] * count,
        width=[90] * count, bucket=[GEOMETRY.name] * count, shard_records=SHARD_RECORDS,
    )  # fmt: skip
    manifest = Manifest.create(
        preset="any", codec=codec, levels={"p3": 8, "p4": 16, "p5": 32}, num_classes=7,
        geometries=[GEOMETRY], shard_records=SHARD_RECORDS, teacher={}, dataset={},
        augmentation={}, numerics={},
    )  # fmt: skip
    return replace(manifest, **changes), index


def small_fields(codes: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Codes, and what every record has."""
    return {
        **codes,
        "detections": torch.full((count, 5, 6), -1.0),
        "pixels_crc32c": torch.arange(count).to(torch.uint32),
        "pixels_sample": torch.zeros((count, 16, 16, 3), dtype=torch.uint8),
    }


def write(path: Path, codec: RecordCodec, count: int = 3) -> dict[str, Tensor]:
    """Write a store; return the codes of its records."""
    writer = CacheWriter(path, *plan_of(codec, count))
    codes = codec.encode(values_of(count), GEOMETRY)
    data = dict(joined(codec.arrays(GEOMETRY), small_fields(codes, count)))
    for shard in writer.missing():
        records = writer.records_of(shard)
        writer.write(shard, {name: one.numpy()[records] for name, one in data.items()})
    return codes


def test_signals_come_by_name_whatever_their_order_and_small_fields_apart() -> None:
    preset = get_preset("balanced")
    one, other = (
        RecordCodec.of_preset(preset, order, 5) for order in (SIGNALS, tuple(reversed(SIGNALS)))
    )
    assert one.identity == other.identity and one.arrays(GEOMETRY) == other.arrays(GEOMETRY)
    names = [array.name for array in one.arrays(GEOMETRY)]
    assert names == [*sorted(signal.name for signal in SIGNALS), "record"]
    assert [field.name for field in one.arrays(GEOMETRY)[-1].fields] == [
        "detections", "pixels_crc32c", "pixels_sample",
        "features.scale", "scores.profile", "scores.bound",
    ]  # fmt: skip


def test_the_codes_of_all_signals_pass_through_a_store(codec: RecordCodec, tmp_path: Path) -> None:
    codes = write(tmp_path / "cache", codec)
    assert verify(tmp_path / "cache", "deep").ok
    reader = CacheReader(tmp_path / "cache")
    assert reader.codec == codec and reader.codec.identity == codec.identity
    read = reader.read_many(range(3))
    stored = {name: torch.from_numpy(np.stack([one[name] for one in read])) for name in codes}
    decoded = reader.codec.decode(stored, GEOMETRY)
    assert list(decoded) == [signal.name for signal in SIGNALS]
    for name, tensor in codec.decode(codes, GEOMETRY).items():
        assert torch.equal(decoded[name], tensor), name


def test_signals_that_are_not_read_are_not_decoded(codec: RecordCodec, tmp_path: Path) -> None:
    write(tmp_path / "cache", codec)
    reader = CacheReader(tmp_path / "cache", signals=["scores"])
    record = {name: torch.from_numpy(one.copy()) for name, one in reader.read(1).items()}
    assert {name.partition(".")[0] for name in record if "." in name} == {"scores"}
    batch = {name: one[None] for name, one in record.items()}
    assert reader.codec.decode(batch, GEOMETRY).keys() == {"scores"}
    placing = Placing([GEOMETRY], GEOMETRY, torch.device("cpu"))
    assert reader.codec.decode_placed([record], placing).keys() == {"scores"}


def test_records_of_several_sizes_are_decoded_onto_one_grid(codec: RecordCodec) -> None:
    grid = Geometry(64, 96, ((8, 12), (4, 6), (1, 2)))
    sizes = GEOMETRIES[:2]
    codes = [codec.encode(values_of(1, geometry), geometry) for geometry in sizes]
    placing = Placing(sizes, grid, torch.device("cpu"))
    together = codec.decode_placed([record_of(one, 0) for one in codes], placing)
    for signal in SIGNALS:
        for number, (one, own) in enumerate(zip(codes, sizes, strict=True)):
            alone = codec.decode(one, own)[signal.name][0]
            wanted = placed(alone, signal, own, grid)
            assert torch.equal(together[signal.name][number], wanted), signal.name


def test_codes_are_joined_on_their_device_as_arrays_join_them(codec: RecordCodec) -> None:
    codes = small_fields(codec.encode(values_of(), GEOMETRY), 3)
    arrays = codec.arrays(GEOMETRY)
    found = dict(joined(arrays, codes))
    assert list(found) == [one.name for one in arrays]
    fields = {name: one.numpy() for name, one in codes.items()}
    for array in arrays:
        np.testing.assert_array_equal(found[array.name].numpy(), array.join(fields))
    del codes["detections"]  # a part of "record", which so is not whole
    assert list(dict(joined(arrays, codes))) == [one.name for one in arrays[:-1]]


def test_a_signal_that_the_teacher_did_not_give_is_named(codec: RecordCodec) -> None:
    values = values_of()
    del values["deltas"]
    with pytest.raises(
        ValueError, match="teacher's deltas: absent, only features, proposal_scores,"
    ):
        codec.encode(values, GEOMETRY)


@dataclass(frozen=True, kw_only=True)
class Looked(Dense):
    """A user's codec with a table of its own, which has no place for NaN."""

    def encode(self, values: Tensor, signal: Signal, geometry: Geometry) -> dict[str, Tensor]:
        torch.arange(300)[values.clamp(-9, 9).long()]
        return super().encode(values, signal, geometry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_signal_that_is_not_finite_is_named_whatever_its_codec_raises(
    dtype: torch.dtype,
) -> None:
    signals = (DELTAS, Dense(dtype="float16")), (FEATURES, Looked()), (ROWS, Looked())
    codec = RecordCodec(signals=signals, num_detections=5)
    values = values_of()
    values["features"] = values["features"].to(dtype)
    assert codec.encode(values, GEOMETRY)
    values["features"][1, 2, 3] = torch.nan
    values["proposal_scores"][:] = torch.inf
    with pytest.raises(ValueError, match=r"^teacher's features holds NaN or infinity \(0064x0096"):
        codec.encode(values, GEOMETRY)
    values["deltas"][2, 1, 0] = -1e5
    with pytest.raises(ValueError, match=r"^teacher's deltas exceeds the range of float16"):
        codec.encode(values, GEOMETRY)


class Halves(Codec):
    """A user's codec of features; what `encode` and `decode` give is told to it."""

    name = "halves"
    kinds = ("maps",)

    def __init__(
        self,
        encoded: Callable[[Tensor], Any] = lambda codes: {"half": codes},
        decoded: Callable[[Tensor], Any] = lambda values: values,
    ) -> None:
        object.__setattr__(self, "encoded", encoded)
        object.__setattr__(self, "decoded", decoded)

    def fields(self, signal: Signal, geometry: Geometry) -> list[Field]:
        return [Field("half", signal.shape(geometry), "float16")]

    def encode(self, values: Tensor, signal: Signal, geometry: Geometry) -> Any:
        return self.encoded(values.half())

    def decode(self, codes: Codes, signal: Signal, geometry: Geometry) -> Any:
        return self.decoded(codes["half"].float())


def raising(_: Tensor) -> Any:
    (one,) = ()
    return one


class TestOwnCodecs:
    """A codec of the user's that breaks its word is named before anything is stored or used."""

    def codec(self, **does: Any) -> RecordCodec:
        return RecordCodec(signals=((FEATURES, Halves(**does)),), num_detections=5)

    @pytest.mark.parametrize(
        ("encoded", "said"),
        [
            # As many bytes as the fields say: nobody would find them out later.
            (
                lambda one: {"half": one.mT},
                r"half of `encode` is float16\(3, 121, 6\), expected float16\(3, 6, 121\)$",
            ),
            (lambda one: {"half": one.view(torch.int16)}, r"half of `encode` is int16\("),
            (lambda one: {"half": one[:2]}, r"half of `encode` is float16\(2,"),
            (lambda one: {"half": one.numpy()}, "half of `encode` is ndarray"),
            (lambda one: {"helf": one}, "`encode` gives helf, expected half"),
            (lambda one: {"half": one, "more": one}, "`encode` gives half, more, expected half"),
            (lambda one: {}, "`encode` gives nothing, expected half"),
            (lambda one: one, "`encode` gives Tensor, expected half"),
            (raising, "not enough values to unpack"),
        ],
    )
    def test_codes_that_are_not_of_its_fields(
        self, encoded: Callable[[Tensor], Any], said: str
    ) -> None:
        with pytest.raises(ValueError, match=f"^codec halves: signal features: (field )?{said}"):
            self.codec(encoded=encoded).encode({"features": values_of()["features"]}, GEOMETRY)

    @pytest.mark.parametrize(
        ("decoded", "said"),
        [
            (lambda one: one[..., :-1], r"gives float32\("),
            (lambda one: one.mT, r"gives float32\("),
            (lambda one: one.double(), r"gives float64\("),
            (lambda one: None, "gives NoneType"),
            (raising, ""),
        ],
    )
    def test_values_that_are_not_of_its_signal(
        self, decoded: Callable[[Tensor], Any], said: str
    ) -> None:
        codec = self.codec(decoded=decoded)
        codes = codec.encode({"features": values_of()["features"]}, GEOMETRY)
        placing = Placing([GEOMETRY], GEOMETRY, torch.device("cpu"))
        named = "codec halves: signal features: (`decode` )?" + said
        with pytest.raises(ValueError, match=named):
            codec.decode(codes, GEOMETRY)
        with pytest.raises(ValueError, match=named):
            codec.decode_placed([record_of(codes, 0)], placing)

    @pytest.mark.parametrize(
        ("does", "said"),
        [
            (
                {"encoded": lambda one: {"half": torch.rand_like(one)}},
                "`encode` gives another half",
            ),
            ({"decoded": lambda one: one.sqrt()}, "`decode` gives NaN or infinity"),
            ({"decoded": lambda one: one[:, :-1]}, r"`decode` gives float32\("),
            ({}, ""),
        ],
    )
    def test_codes_are_made_again_and_read(self, does: Any, said: str) -> None:
        values = {"features": values_of()["features"]}
        codec = self.codec(**does)
        codes = codec.encode(values, GEOMETRY)
        raised = pytest.raises(ValueError, match=f"^codec halves: signal features: {said}")
        with raised if said else nullcontext():
            codec.prove(values, codes, GEOMETRY)

    @pytest.mark.parametrize("mark", [torch.inf, torch.nan])
    def test_a_field_in_float16_that_is_not_finite(self, mark: float) -> None:
        codec = self.codec(encoded=lambda one: {"half": one.fill_(mark)})
        said = "^codec halves: signal features: field half holds NaN or infinity in float16$"
        with pytest.raises(ValueError, match=said):
            codec.encode({"features": values_of()["features"]}, GEOMETRY)

    def test_values_that_are_not_finite_are_told_of_first(self) -> None:
        values = values_of()["features"].fill_(torch.nan)
        with pytest.raises(ValueError, match=r"^teacher's features holds NaN"):
            self.codec(encoded=raising).encode({"features": values}, GEOMETRY)


def test_gradients_are_neither_needed_nor_kept(codec: RecordCodec) -> None:
    values = {name: one.requires_grad_() for name, one in values_of().items()}
    codes = codec.encode(values, GEOMETRY)
    assert not any(one.requires_grad for one in codes.values())
    assert not any(one.requires_grad for one in codec.decode(codes, GEOMETRY).values())


# More bytes than a field may have.
ENORMOUS = {
    "kind": "rows",
    "sizes": {"rows": 1 << 20, "columns": 1 << 20},
    "codec": {"name": "dense", "version": 1, "parameters": {}},
}


def of_codec(**changes: Any) -> Callable[[Any], None]:
    return lambda signal: signal["codec"].update(changes)


class TestNotDecoded:
    """Records that this software cannot decode are read, and refused in one line by the codec."""

    def forge(self, path: Path, change: Callable[[Any], None]) -> CacheReader:
        """Change what a store's manifest says of its features, digests and all."""
        write(path, RecordCodec.of_preset(get_preset("balanced"), SIGNALS, 5))
        root = json.loads((path / "zarr.json").read_bytes())
        manifest = root["attributes"]["gid"]
        change(manifest["identity"]["signals"]["features"])
        manifest["cache_id"] = checksums.sha256(canonical.dump(manifest["identity"]))
        rewrite_root(path, root)
        return CacheReader(path)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda one: one.update(kind="sounds"), "signal features: kind 'sounds', expected one"),
            (
                lambda one: one.update(sizes={"columns": 2}),
                r"sizes \['columns'\], expected \['chan",
            ),
            (lambda one: one.update(sizes=["channels"]), "signal features: "),
            (lambda one: one.update(ENORMOUS), "0064x0096 has other fields"),
            (lambda one: one.update(sizes={"channels": -1}), "features: channels: got -1"),
            (lambda one: one.pop("codec"), "signal features: it has no 'codec'"),
            (lambda one: one["codec"].pop("version"), "signal features: it has no 'version'"),
            (of_codec(name="of_theirs"), r"signal features: codec 'of_theirs': .*\(IMPORTS\)"),
            (of_codec(name=["x"]), "signal features: "),
            (of_codec(parameters={"colour": 1}), "signal features: codec stepped_maps: .*'colour'"),
            (of_codec(parameters=3), "signal features: "),
            (of_codec(name="dense", parameters={"dtype": "int8"}), "features: codec dense: dtype"),
            (of_codec(name="predicted_maps"), "bucket 0064x0096 has other fields than its codecs"),
            (
                of_codec(name="sparse_scores"),
                "signal features: codec sparse_scores does not hold the kind",
            ),
            (lambda one: one["sizes"].update(channels=7), "bucket 0064x0096 has other fields"),
        ],
    )
    def test_what_is_not_known_here(
        self, tmp_path: Path, change: Callable[[Any], None], said: str
    ) -> None:
        reader = self.forge(tmp_path / "cache", change)
        with pytest.raises(FormatError, match=said) as caught:
            _ = reader.codec
        assert str(tmp_path / "cache") in str(caught.value) and "\n" not in str(caught.value)

    @given(st.data())
    @FUZZ
    def test_whatever_is_forged(self, data: st.DataObject) -> None:
        """Nothing but documented errors come out."""
        honest = RecordCodec.of_preset(get_preset("compact"), SIGNALS, 5).identity
        path = data.draw(st.sampled_from(paths(honest)))
        forged = replaced(honest, path, data.draw(HOSTILE | JSON))
        with suppress(FormatError, VersionError):
            codec = RecordCodec.of_manifest(forged, 5, "store")
            assert codec.writes((), GEOMETRY) is False

    def test_another_version_of_a_codec(self, tmp_path: Path) -> None:
        path = tmp_path / "cache"
        reader = self.forge(path, of_codec(version=2))
        with pytest.raises(VersionError) as caught:
            _ = reader.codec
        assert str(caught.value) == (
            f"{path}: signal features is in version 2 of codec stepped_maps, this software knows"
            " version 1; read it with the software that wrote it, or dump it again"
        )
        said = r"signals\.features\.codec\.version: stored 2, wanted 1"
        with pytest.raises(IdentityError, match=said):
            CacheWriter(path, *plan_of(RecordCodec.of_preset(get_preset("balanced"), SIGNALS, 5)))

    def test_fields_that_are_not_those_of_the_codec(self, tmp_path: Path) -> None:
        codec = RecordCodec.of_preset(get_preset("balanced"), SIGNALS, 5)
        manifest, index = plan_of(codec)
        more = Array("more", (Field("more", (), "int8"),))
        arrays = {name: (*own, more) for name, own in manifest.arrays.items()}
        CacheWriter(tmp_path / "cache", replace(manifest, arrays=arrays), index)
        with pytest.raises(FormatError, match=r"cache: bucket 0064x0096 has other fields than its"
                           r" codecs write; read it with .*, or dump it again"):  # fmt: skip
            _ = CacheReader(tmp_path / "cache").codec
