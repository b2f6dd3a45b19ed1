"""What every codec promises, for each kind of signal that it takes: a new one joins by being there.

Two codecs of a user's are among them: one that says how its codes are placed on a grid, and one
that encodes and decodes, and leaves all else to the base class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from storage import Codec, Field, Geometry, RecordCodec, Signal, register_codec
from storage.codecs.base import Codes, PlacedCodec, of_all
from storage.codecs.placing import Placing
from storage.codecs.presets import CODECS, get_codec
from storage.values import wrong_values
from tests.storage.codecs.samples import (
    GEOMETRIES,
    GEOMETRY,
    SIGNALS,
    expected,
    make_values,
    placed,
    record_of,
    round_trip,
)


@dataclass(frozen=True, kw_only=True)
class Hundredths(Codec):
    """A user's: whole multiples of a step. Nothing but what the base class asks for."""

    name: ClassVar[str] = "hundredths"
    kinds: ClassVar[tuple[str, ...]] = ("maps", "deltas", "boxes", "rows")
    per_unit: int = 100

    def fields(self, signal: Signal, geometry: Geometry) -> list[Field]:
        return [Field("steps", signal.shape(geometry), "int32")]

    def encode(self, values: Tensor, signal: Signal, geometry: Geometry) -> dict[str, Tensor]:
        return {"steps": (values.float() * self.per_unit).round().to(torch.int32)}

    def decode(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        return codes["steps"] / self.per_unit


@dataclass(frozen=True, kw_only=True)
class OneScale(PlacedCodec):
    """A user's: 16 bits and one scale, which is small, under Zstandard."""

    name: ClassVar[str] = "one_scale"
    version: ClassVar[int] = 3
    kinds: ClassVar[tuple[str, ...]] = ("maps",)
    small: ClassVar[frozenset[str]] = frozenset({"scale"})
    compression: ClassVar[str | None] = "zstd"

    def fields(self, signal: Signal, geometry: Geometry) -> list[Field]:
        limits = {"limits": {"least": -32_000, "most": 32_000}}
        return [
            Field("codes", signal.shape(geometry), "int16", limits),
            Field("scale", (), "float32", {"limits": {"least": 0}}),
        ]

    def encode(self, values: Tensor, signal: Signal, geometry: Geometry) -> dict[str, Tensor]:
        values = values.float()
        scale = (values.abs().amax(dim=(1, 2)) / 32_000).clamp(min=1e-37)
        return {"codes": (values / scale[:, None, None]).round().to(torch.int16), "scale": scale}

    def place(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Codes:
        return {
            "codes": placing.positions(of_all(records, "codes")),
            "scale": torch.stack(of_all(records, "scale")),
        }

    def decode_unpacked(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        return codes["codes"] * codes["scale"][:, None, None]


OWN = (Hundredths, OneScale)
# Parameters that are worth a run; of all others, the defaults.
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "dense": [{}, {"dtype": "float16"}],
    "dense_scores": [{}, {"dtype": "float16"}],
    "sparse_scores": [{}, {"kept": 60}],
    "packed_scores": [{}, {"kept": 60}],
}
CASES = [
    pytest.param(codec(**parameters), signal, id=f"{codec.name}{number or ''}-{signal.name}")
    for codec in (*CODECS.values(), *OWN)
    for number, parameters in enumerate(PARAMETERS.get(codec.name, [{}]))
    for signal in SIGNALS
    if signal.kind in codec.kinds
]
of_every_codec = pytest.mark.parametrize(("codec", "signal"), CASES)
of_every_size = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda one: one.name)

# Largest error of a decoded value, relative to the largest of all; of scores, absolute.
TOLERANCE = {
    "dense": 6e-4,
    "dense_scores": 1e-3,
    "hundredths": 1e-2,
    "one_scale": 1e-4,
    "packed_scores": 2e-2,
    "predicted_deltas": 5e-3,
    "predicted_maps": 0.125,  # half a step of a quarter of a deviation; of a lone position, of all
    "sparse_scores": 2e-2,
    "stepped_maps": 5e-3,
}


@pytest.fixture(autouse=True)
def _own_codecs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("storage.codecs.presets.CODECS", known := dict(CODECS))
    for codec in OWN:
        assert register_codec(codec) is codec
    assert known.keys() - CODECS.keys() == {codec.name for codec in OWN}
    return


def record_codec(codec: Codec, signal: Signal) -> RecordCodec:
    return RecordCodec(signals=[(signal, codec)], num_detections=2)


@of_every_codec
@of_every_size
def test_codes_are_those_that_the_fields_announce(
    codec: Codec, signal: Signal, geometry: Geometry
) -> None:
    codes = codec.encode(make_values(signal, geometry), signal, geometry)
    fields = codec.fields(signal, geometry)
    assert {field.name for field in fields} == codes.keys()
    for field in fields:
        array = codes[field.name].numpy()
        assert (array.shape, array.dtype) == ((4, *field.shape), np.dtype(field.dtype))


@of_every_codec
def test_names_of_fields_do_not_depend_on_the_size(codec: Codec, signal: Signal) -> None:
    names = [[one.name for one in codec.fields(signal, geometry)] for geometry in GEOMETRIES]
    assert names[0] == names[1] == names[2]


@of_every_codec
@of_every_size
def test_decoding_restores_shapes_and_values(
    codec: Codec, signal: Signal, geometry: Geometry
) -> None:
    values = make_values(signal, geometry)
    decoded = round_trip(codec, signal, values, geometry)
    wanted = expected(signal, values)
    assert decoded.dtype == torch.float32
    limit = TOLERANCE[codec.name] * (1 if signal.kind == "scores" else float(wanted.abs().max()))
    torch.testing.assert_close(decoded, wanted, rtol=0, atol=limit)
    if signal.kind == "scores":
        assert decoded.min() >= 0 and decoded.max() <= 1


@of_every_codec
@of_every_size
def test_a_record_does_not_depend_on_its_batch(
    codec: Codec, signal: Signal, geometry: Geometry
) -> None:
    values = make_values(signal, geometry, 9)
    together = codec.encode(values, signal, geometry)
    decoded = codec.decode(together, signal, geometry)
    for number in (0, 5, 8):
        alone = codec.encode(values[number : number + 1], signal, geometry)
        for name, codes in alone.items():
            assert torch.equal(codes[0], together[name][number]), name
        assert torch.equal(codec.decode(alone, signal, geometry)[0], decoded[number])


@of_every_codec
def test_encoding_changes_nothing_and_shares_no_memory(codec: Codec, signal: Signal) -> None:
    values = make_values(signal)
    before = values.clone()
    codes = codec.encode(values, signal, GEOMETRY)
    kept = {name: tensor.clone() for name, tensor in codes.items()}
    assert torch.equal(values, before)
    values.fill_(float("nan"))  # as detectron2 does with its logits
    for name, tensor in codes.items():
        assert torch.equal(tensor, kept[name]), name


@of_every_codec
def test_decoding_does_not_change_the_codes(codec: Codec, signal: Signal) -> None:
    codes = codec.encode(make_values(signal), signal, GEOMETRY)
    before = {name: tensor.clone() for name, tensor in codes.items()}
    codec.decode(codes, signal, GEOMETRY)
    records = [record_of(codes, number) for number in range(4)]
    codec.decode_placed(records, signal, Placing([GEOMETRY] * 4, GEOMETRY, torch.device("cpu")))
    assert all(torch.equal(codes[name], before[name]) for name in codes)


@of_every_codec
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point_type_is_taken(codec: Codec, signal: Signal, dtype: torch.dtype) -> None:
    values = make_values(signal).to(dtype)
    encoded = codec.encode(values, signal, GEOMETRY)
    for name, codes in codec.encode(values.float(), signal, GEOMETRY).items():
        assert torch.equal(encoded[name], codes), name


@of_every_codec
def test_strided_values_are_taken(codec: Codec, signal: Signal) -> None:
    values = make_values(signal)
    strided = values.mT.contiguous().mT
    wanted = codec.encode(values, signal, GEOMETRY)
    for name, codes in codec.encode(strided, signal, GEOMETRY).items():
        assert torch.equal(codes, wanted[name]), name


@of_every_codec
@of_every_size
@pytest.mark.parametrize("value", [0.0, 1e-30, -3.5])
def test_constant_values_survive(
    codec: Codec, signal: Signal, geometry: Geometry, value: float
) -> None:
    values = torch.full((2, *signal.shape(geometry)), value)
    # A kept score of one byte: half a step of its square root.
    coarse = {"rtol": 2e-2, "atol": 3e-3} if codec.name == "packed_scores" else {"rtol": 1e-3}
    tolerance = (
        {"atol": 5e-5, **coarse} if signal.kind == "scores" else {"rtol": 1e-3, "atol": 1e-30}
    )
    decoded = round_trip(codec, signal, values, geometry)
    torch.testing.assert_close(decoded, expected(signal, values), **tolerance)


@of_every_codec
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(codec: Codec, signal: Signal, bad: float) -> None:
    values = make_values(signal)
    values[1, 0, 0] = bad
    codec.encode(values, signal, GEOMETRY)  # what is looked at later must not end a process before
    with pytest.raises(ValueError, match=f"teacher's {signal.name} holds NaN or infinity"):
        record_codec(codec, signal).encode({signal.name: values}, GEOMETRY)


@of_every_codec
def test_values_and_codes_of_another_shape_are_refused(codec: Codec, signal: Signal) -> None:
    values, whole = make_values(signal), record_codec(codec, signal)
    with pytest.raises(ValueError, match=rf"teacher's {signal.name}: got .* expected"):
        whole.encode({signal.name: values[..., :-1]}, GEOMETRY)
    codes = whole.encode({signal.name: values}, GEOMETRY)
    first = next(name for name in codes if codes[name].dim() > 1)
    says = f"signal {signal.name}: field {first.partition('.')[2]} is"
    with pytest.raises(ValueError, match=rf"{says} \w+\(.*, expected \w+\("):
        whole.decode({**codes, first: codes[first][..., :-1]}, GEOMETRY)
    with pytest.raises(ValueError, match=f"{says} .* expected"):
        whole.decode({**codes, first: codes[first].double()}, GEOMETRY)
    if len(codes) > 1:
        del codes[first]
        with pytest.raises(ValueError, match=f"{says} absent"):
            whole.decode(codes, GEOMETRY)


GRID = Geometry(64, 96, ((8, 12), (4, 6), (2, 3)))
# Smaller in one direction, in both, in the coarsest level too, and the grid's own size, twice.
ON_GRID = (
    Geometry(64, 72, ((8, 9), (4, 5), (2, 3))),
    Geometry(40, 88, ((5, 11), (3, 6), (2, 3))),
    GRID,
    Geometry(24, 24, ((3, 3), (2, 2), (1, 1))),
    GRID,
)
ONE_LEVEL = Geometry(64, 96, ((8, 11),))


@of_every_codec
@pytest.mark.parametrize(
    ("geometries", "grid"),
    [
        (ON_GRID, GRID),
        (ON_GRID[3:4], GRID),
        (ON_GRID[:1] * 3, ON_GRID[0]),
        ((Geometry(8, 8, ((1, 1),)), ONE_LEVEL, Geometry(56, 24, ((7, 3),))), ONE_LEVEL),
    ],
    ids=["mixed", "smaller", "equal", "one level"],
)
def test_on_a_grid_records_decode_to_the_bits_of_each_alone(
    codec: Codec, signal: Signal, geometries: Sequence[Geometry], grid: Geometry
) -> None:
    codes = [
        codec.encode(make_values(signal, geometry, 1, seed), signal, geometry)
        for seed, geometry in enumerate(geometries)
    ]
    placing = Placing(geometries, grid, torch.device("cpu"))
    together = codec.decode_placed([record_of(one, 0) for one in codes], signal, placing)
    assert together.shape == (len(geometries), *signal.shape(grid))
    for result, one, own in zip(together, codes, geometries, strict=True):
        alone = codec.decode(one, signal, own)[0]
        assert torch.equal(result, placed(alone, signal, own, grid))


@of_every_codec
@of_every_size
def test_what_is_encoded_makes_sense(codec: Codec, signal: Signal, geometry: Geometry) -> None:
    for values in (make_values(signal, geometry), torch.zeros(1, *signal.shape(geometry))):
        codes = codec.encode(values, signal, geometry)
        for field in codec.fields(signal, geometry):
            for value in codes[field.name].numpy():
                assert wrong_values(field, value, geometry.height, geometry.width, 7) == ""


@of_every_codec
def test_its_identity_is_json_and_makes_the_same_codec_again(codec: Codec, signal: Signal) -> None:
    again = get_codec(json.loads(json.dumps(codec.identity)))
    assert again == codec and again.version == codec.identity["version"]
    assert again.fields(signal, GEOMETRY) == codec.fields(signal, GEOMETRY)


@of_every_codec
@of_every_size
def test_small_fields_are_fields_and_announced_sizes_are_possible(
    codec: Codec, signal: Signal, geometry: Geometry
) -> None:
    (first, *_), typical = record_codec(codec, signal).arrays(geometry), None
    names = {one.name for one in codec.fields(signal, geometry)}
    assert first.name == signal.name and len(first.fields) == len(names - codec.small)
    typical = codec.typical_bytes(signal, geometry)
    assert typical is None or (codec.compression and 0 <= typical <= first.num_bytes + 50)


@of_every_codec
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_work_is_done_on_the_device_of_the_values(
    codec: Codec, signal: Signal, device: str
) -> None:
    values = make_values(signal)
    codes = codec.encode(values.to(device), signal, GEOMETRY)
    assert {tensor.device.type for tensor in codes.values()} == {device}
    decoded = codec.decode(codes, signal, GEOMETRY)
    placing = Placing([GEOMETRY] * 4, GEOMETRY, decoded.device)
    records = [record_of(codes, number) for number in range(4)]
    for result in (decoded, codec.decode_placed(records, signal, placing)):
        assert result.device.type == device
        limit = 4 * TOLERANCE[codec.name]
        wanted = round_trip(codec, signal, values)
        torch.testing.assert_close(result.cpu(), wanted, rtol=0, atol=limit)
