"""A whole record: its signals, each with its codec, and the arrays that its fields lie in.

Shape letters: n records, B bytes of a record in one array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from storage.codecs.base import Codec, Codes, check_kind, check_shape, check_tensor, require_finite
from storage.codecs.placing import Placing
from storage.codecs.presets import Preset, get_codec
from storage.errors import FormatError, VersionError
from storage.schema import RECORD, Array, Field, Geometry, common_fields
from storage.signals import Signal

_BEYOND_HALF = (
    "teacher's {} exceeds the range of float16 (65504): use CACHE.PRESET exact with CACHE.DTYPE"
    " float32"
)


@dataclass(frozen=True, kw_only=True)
class RecordCodec:
    """Encodes and decodes whole records.

    Attributes:
        signals: what a record holds of the teacher, with the codec of each.
        num_detections: D, rows of the detections.
    """

    signals: Sequence[tuple[Signal, Codec]]
    num_detections: int

    @classmethod
    def of_preset(
        cls, preset: Preset, signals: Sequence[Signal], num_detections: int
    ) -> RecordCodec:
        """Choose the codec of each signal.

        Raises:
            ValueError: the preset has none for a kind.
        """
        # By name, which is the order of a manifest.
        chosen = [(one, preset.codec_for(one)) for one in sorted(signals, key=lambda s: s.name)]
        return cls(signals=tuple(chosen), num_detections=num_detections)

    @classmethod
    def of_manifest(
        cls, signals: Mapping[str, Any], num_detections: int, store: str
    ) -> RecordCodec:
        """Make the codecs that a manifest names.

        Raises:
            FormatError: a kind or a codec that is not known here.
            VersionError: the records are in another version of a codec.
        """
        found = []
        for name, stated in signals.items():
            try:
                signal, codec, version = _known(name, stated)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                raise FormatError(f"{store}: signal {name}: {reason}") from error
            if codec.version != version:
                raise VersionError(
                    f"{store}: signal {name} is in version {version} of codec"
                    f" {codec.name}, this software knows version {codec.version}; read it with the"
                    " software that wrote it, or dump it again"
                )
            found.append((signal, codec))
        return cls(signals=tuple(found), num_detections=num_detections)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Signal name to its kind, sizes and codec, as JSON."""
        return {
            signal.name: {**signal.to_json(), "codec": codec.identity}
            for signal, codec in self.signals
        }

    def arrays(self, geometry: Geometry) -> tuple[Array, ...]:
        """Return one array a signal, and last that of everything small."""
        arrays, small = [], list(common_fields(self.num_detections))
        for signal, codec in self.signals:
            fields = [
                (one.name in codec.small, replace(one, name=f"{signal.name}.{one.name}"))
                for one in codec.fields(signal, geometry)
            ]
            small += [one for is_small, one in fields if is_small]
            large = tuple(one for is_small, one in fields if not is_small)
            if large:
                arrays.append(Array(signal.name, large, codec.compression))
        return (*arrays, Array(RECORD, tuple(small)))

    def writes(self, arrays: Sequence[Array], geometry: Geometry) -> bool:
        """Whether these are the arrays of a record; they may be forged, and so may the sizes."""
        try:
            return self.arrays(geometry) == tuple(arrays)
        except ValueError:
            return False

    def typical_bytes(self, geometry: Geometry) -> dict[str, int]:
        """Return what compression is known to leave of one record, by array name, bytes."""
        sizes = {one.name: codec.typical_bytes(one, geometry) for one, codec in self.signals}
        return {name: size for name, size in sizes.items() if size is not None}

    def encode(self, values: Mapping[str, Tensor], geometry: Geometry) -> dict[str, Tensor]:
        """Encode n records; the values are not modified.

        Args:
            values: signal name to (n, *its shape), floating point.
            geometry: of the records.

        Returns:
            Field name to (n, *field.shape) tensor of the field's dtype, on the values' device.

        Raises:
            ValueError: a signal is absent or has another shape, or values that are not finite or
                that a codec cannot hold; a codec gives something else than its fields say.
        """
        found: dict[str, Tensor] = {}
        extremes: list[tuple[str, Sequence[Tensor]]] = []
        try:
            for signal, codec in self.signals:
                if signal.name not in values:
                    raise ValueError(f"teacher's {signal.name}: absent, only {', '.join(values)}")
                value = values[signal.name].detach()
                check_shape(value, signal, geometry)
                said = f"teacher's {signal.name} holds NaN or infinity ({geometry.name})"
                extremes.append((said, torch.aminmax(value)))
                with _named(codec, signal), torch.no_grad():
                    codes = codec.encode(value, signal, geometry)
                    _check_codes(codes, codec.fields(signal, geometry), len(value))
                for name, code in codes.items():
                    found[f"{signal.name}.{name}"] = code
                    if code.dtype == torch.float16:
                        extremes.append((_beyond_half(codec, signal, name), torch.aminmax(code)))
        finally:
            # Also where a codec raised: it may have stumbled over such values, and this says so.
            require_finite(extremes)
        return found

    def prove(
        self, values: Mapping[str, Tensor], codes: Mapping[str, Tensor], geometry: Geometry
    ) -> None:
        """Look whether codes can be made again, and read: once, for a codec of the user's own.

        Args:
            values, geometry: that were encoded.
            codes: what `encode` gave.

        Raises:
            ValueError: the values are encoded to something else this time; what is decoded is not
                of the signal, or not finite.
        """
        again = self.encode(values, geometry)
        device = next(iter(codes.values())).device
        # One of them: there is no room planned on a GPU for the values of all.
        decoded = self.decode({name: code[:1] for name, code in codes.items()}, geometry)
        placed = self.decode_placed(
            [{name: code[0] for name, code in codes.items()}],
            Placing([geometry], geometry, device),
        )
        for signal, codec in self.signals:
            with _named(codec, signal):
                for field in codec.fields(signal, geometry):
                    name = f"{signal.name}.{field.name}"
                    if not torch.equal(again[name], codes[name]):
                        raise ValueError(
                            f"`encode` gives another {field.name} for the same values the second "
                            "time; it must not draw at random, nor change the values"
                        )
                for given, found in (("decode", decoded), ("decode_placed", placed)):
                    if not found[signal.name].isfinite().all():
                        raise ValueError(f"`{given}` gives NaN or infinity for finite values")

    def decode(self, codes: Codes, geometry: Geometry) -> dict[str, Tensor]:
        """Decode n records of one padded size.

        Args:
            codes: field name to (n, *field.shape), all on one device; signals of which there is no
                field are left out, fields of no signal are ignored.
            geometry: of the records.

        Returns:
            Signal name to (n, *its shape) float32; of the kind `scores`, probabilities.

        Raises:
            ValueError: a field is absent or has another shape or dtype than it was written with; a
                codec decodes them to something else than the signal.
        """
        found = {}
        for signal, codec in self.signals:
            if own := _own_codes(codes, signal, codec, geometry, leading=1):
                count = len(next(iter(own.values())))
                with _named(codec, signal), torch.no_grad():
                    values = codec.decode(own, signal, geometry)
                    check_tensor(
                        "`decode` gives", values, "float32", (count, *signal.shape(geometry))
                    )
                found[signal.name] = values
        return found

    def decode_placed(self, records: Sequence[Codes], placing: Placing) -> dict[str, Tensor]:
        """Decode n records of several padded sizes together, onto one grid.

        A record lies at the top left of each level. Beyond it, maps repeat its last row and column;
        what belongs to anchors is zero.

        Args:
            records: field name to (*field.shape) of each, as in `decode`.
            placing: where they lie.

        Raises:
            ValueError: as `decode`.
        """
        found = {}
        for signal, codec in self.signals:
            own = [
                _own_codes(one, signal, codec, geometry, leading=0)
                for one, geometry in zip(records, placing.geometries, strict=True)
            ]
            if own[0]:
                shape = (len(own), *signal.shape(placing.grid))
                with _named(codec, signal), torch.no_grad():
                    values = codec.decode_placed(own, signal, placing)
                    check_tensor("`decode_placed` gives", values, "float32", shape)
                found[signal.name] = values
        return found


def _known(name: str, stated: Any) -> tuple[Signal, Codec, Any]:
    """Make a signal and its codec from what a manifest says; also the codec's version in there."""
    signal, codec = Signal(name, stated["kind"], stated["sizes"]), get_codec(stated["codec"])
    check_kind(codec, signal)
    return signal, codec, stated["codec"]["version"]


def _own_codes(
    codes: Codes, signal: Signal, codec: Codec, geometry: Geometry, *, leading: int
) -> dict[str, Tensor]:
    """The checked codes of one signal, by the codec's own field names; {} if there are none."""
    prefix = f"{signal.name}."
    own = {name.removeprefix(prefix): one for name, one in codes.items() if name.startswith(prefix)}
    for field in codec.fields(signal, geometry) if own else ():
        said = f"signal {signal.name}: field {field.name}"
        if field.name not in own:
            raise ValueError(f"{said} is absent")
        shape = (*own[field.name].shape[:leading], *field.shape)
        check_tensor(f"{said} is", own[field.name], field.dtype, shape)
    return own


@contextmanager
def _named(codec: Codec, signal: Signal) -> Iterator[None]:
    """Say in errors which codec it was: those of a user's own would be of anything."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"codec {codec.name}: signal {signal.name}: {error}") from error


def _beyond_half(codec: Codec, signal: Signal, field: str) -> str:
    """Say what it means that a field in float16 is not finite where the teacher's values are."""
    if codec.holds_values:
        return _BEYOND_HALF.format(signal.name)
    said = f"codec {codec.name}: signal {signal.name}: field {field}"
    return f"{said} holds NaN or infinity in float16"


def _check_codes(codes: Any, fields: Sequence[Field], count: int) -> None:
    """Refuse what so many records were encoded to, where the codec's fields say otherwise.

    It may have as many bytes as they say, and would be stored, and read as something else.
    """
    names = [one.name for one in fields]
    if not isinstance(codes, Mapping) or codes.keys() != set(names):
        given = ", ".join(map(str, codes)) if isinstance(codes, Mapping) else type(codes).__name__
        raise ValueError(f"`encode` gives {given or 'nothing'}, expected {', '.join(names)}")
    for field in fields:
        shape = (count, *field.shape)
        check_tensor(f"field {field.name} of `encode` is", codes[field.name], field.dtype, shape)


def joined(arrays: Sequence[Array], codes: Codes) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the (n, B) uint8 bytes of every array whose fields are all there."""
    for array in arrays:
        if all(one.name in codes for one in array.fields):
            yield array.name, _join(array, codes)


def _join(array: Array, codes: Codes) -> Tensor:
    """Bring fields together on their own device, as `Array.join` does on the host."""
    parts, end = [], 0
    for field, start in zip(array.fields, array.offsets, strict=True):
        code = codes[field.name]
        if start > end:
            parts.append(code.new_zeros((len(code), start - end), dtype=torch.uint8))
        parts.append(code.unsqueeze(1).flatten(1).contiguous().view(torch.uint8))
        end = start + field.num_bytes
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
