"""What every codec is: between one signal of a teacher and the fields of a record that hold it.

Shape letters: n records, S positions of all levels, R anchors of an image. A signal's values have
a leading dimension n and then the shape that its kind gives them, see `storage.signals`.

Encoding and decoding are torch functions on the tensors' own device; a record's codes depend on
that record alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from storage.codecs.placing import Placing
from storage.schema import Field, Geometry
from storage.signals import Signal

Codes = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Codec(ABC):
    """A codec. Instances are immutable, and hold parameters only: plain JSON values.

    Field names are the codec's own here (`codes`, `scale`); a record has them behind the signal's
    name and a dot.

    Attributes:
        name: what manifests call it.
        version: of what its codes mean; it is raised when codes written before would decode to
            something else, and readers refuse those.
        kinds: of the signals that it can hold.
        small: names of its fields that lie with everything else that is small, and not in the
            signal's own array.
        compression: of that array, None or "zstd".
        holds_values: whether its fields in float16 are the teacher's values, so that what these
            cannot hold is beyond float16; else it is something that the codec made of them.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]]
    small: ClassVar[frozenset[str]] = frozenset()
    compression: ClassVar[str | None] = None
    holds_values: ClassVar[bool] = False

    @property
    def identity(self) -> dict[str, Any]:
        """Name, version and parameters, as JSON."""
        return {"name": self.name, "version": self.version, "parameters": asdict(self)}

    @abstractmethod
    def fields(self, signal: Signal, geometry: Geometry) -> list[Field]:
        """Return the fields of one record; their names do not depend on the geometry."""

    def typical_bytes(self, signal: Signal, geometry: Geometry) -> int | None:
        """Return what compression is known to leave of one record in the signal's array, bytes.

        For announcements alone; None where nothing was measured.
        """
        return None

    @abstractmethod
    def encode(self, values: Tensor, signal: Signal, geometry: Geometry) -> dict[str, Tensor]:
        """Encode n records; `values` are of the signal's shape, and must not be modified.

        Whether they are finite is looked at afterwards, for all signals at once. Where they are
        not, what this returns or raises is thrown away.

        Returns:
            Field name to (n, *field.shape) tensor of the field's dtype, on the values' device.

        Raises:
            ValueError: values that the codec cannot hold.
        """

    @abstractmethod
    def decode(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        """Decode n records to float32 values; of the kind `scores`, to probabilities."""

    def decode_placed(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Tensor:
        """Decode n records of several padded sizes onto one grid: each size, then placed.

        Args:
            records: field name to (*field.shape) of each, all on one device.
            signal: what they hold.
            placing: their geometries, and where they lie on the grid.
        """
        values: dict[int, Tensor] = {}
        for geometry in set(placing.geometries):
            rows = [row for row, one in enumerate(placing.geometries) if one == geometry]
            codes = {name: stacked([records[row] for row in rows], name) for name in records[0]}
            decoded, shape = self.decode(codes, signal, geometry), signal.shape(geometry)
            check_tensor("`decode` gives", decoded, "float32", (len(rows), *shape))
            values.update(zip(rows, decoded, strict=True))
        return placing.values([values[row] for row in range(len(records))], signal)


class PlacedCodec(Codec):
    """A codec whose codes are brought onto the grid, and decoded there together.

    To decode the records of every padded size apart costs the same launches for each size, which
    is what a batch takes longest for on a GPU; codes are small, and moving them is cheap.
    """

    def unpack(self, codes: Codes, signal: Signal, geometry: Geometry) -> Codes:
        """Codes of n records, those unpacked that two of a byte make up."""
        return codes

    @abstractmethod
    def place(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Codes:
        """Codes of records on a grid, as `unpack` gives them."""

    @abstractmethod
    def decode_unpacked(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        """Decode what `unpack` or `place` gave."""

    def decode(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        return self.decode_unpacked(self.unpack(codes, signal, geometry), signal, geometry)

    def decode_placed(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Tensor:
        return self.decode_unpacked(self.place(records, signal, placing), signal, placing.grid)


def of_all(records: Sequence[Codes], name: str) -> list[Tensor]:
    """One field of every record."""
    return [record[name] for record in records]


def stacked(records: Sequence[Codes], name: str) -> Tensor:
    """One field of every record, of equal shapes: (n, ...)."""
    return torch.stack(of_all(records, name))


def check_shape(values: Tensor, signal: Signal, geometry: Geometry) -> None:
    """Refuse values that do not fit a signal.

    Raises:
        ValueError: names the signal, what its values are and what was expected.
    """
    shape = signal.shape(geometry)
    if tuple(values.shape[1:]) != shape or not values.is_floating_point():
        raise ValueError(
            f"teacher's {signal.name}: got {values.dtype}{tuple(values.shape)}, expected floating"
            f" point (n, {', '.join(map(str, shape))}) for {geometry.name}"
        )


def check_kind(codec: Codec, signal: Signal) -> None:
    """Refuse a codec that does not hold a signal's kind.

    Raises:
        ValueError: names the codec, the kind, and those that it holds.
    """
    if signal.kind not in codec.kinds:
        raise ValueError(
            f"codec {codec.name} does not hold the kind {signal.kind}, only"
            f" {', '.join(codec.kinds)}"
        )


def check_tensor(said: str, tensor: Any, dtype: str, shape: tuple[int, ...]) -> None:
    """Refuse what is no tensor of this dtype and shape; no GPU is waited for.

    Raises:
        ValueError: begins with `said`, and goes on with what it is and what was expected.
    """
    found = type(tensor).__name__
    if isinstance(tensor, Tensor):
        found = str(tensor.dtype).removeprefix("torch.") + str(tuple(tensor.shape))
    if found != f"{dtype}{shape}":
        raise ValueError(f"{said} {found}, expected {dtype}{shape}")


def require_finite(extremes: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """Refuse tensors that hold NaN or infinity, with one reading: a GPU is waited for once.

    Args:
        extremes: of each tensor, what to say of it, and its least and its largest value, () each;
            any NaN or infinity survives in one of them.

    Raises:
        ValueError: says it of the first that is not finite.
    """
    if not extremes:
        return
    flags = torch.stack([value for _, both in extremes for value in both]).isfinite().tolist()
    for (said, _), *are_finite in zip(extremes, flags[::2], flags[1::2], strict=True):
        if not all(are_finite):
            raise ValueError(said)


def sigmoid(logits: Tensor) -> Tensor:
    """Probabilities (n, ...) float32, each record's the same bits whatever the others are.

    A CPU's vectorised kernel rounds the last few values of what it is given in another way than
    the rest, so over all records at once some values would depend on a record's place among them.
    A GPU computes each value alone, and takes longer to launch a kernel than to run it.
    """
    # float32 first: the sigmoid of a half-precision logit would be rounded twice.
    logits = logits.float().contiguous()
    if logits.device.type != "cpu":
        return torch.sigmoid(logits)
    probabilities = torch.empty_like(logits)
    for one, result in zip(logits, probabilities, strict=True):
        torch.sigmoid(one, out=result)
    return probabilities
