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
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]]
    small: ClassVar[frozenset[str]] = frozenset()
    compression: ClassVar[str | None] = None

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
        """Encode n records; `values` are checked, and must not be modified.

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
            values.update(zip(rows, self.decode(codes, signal, geometry), strict=True))
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


def check_values(values: Tensor, signal: Signal, geometry: Geometry) -> None:
    """Refuse values that do not fit a signal, or that are not finite.

    Raises:
        ValueError: names the signal, what its values are and what was expected.
    """
    shape = signal.shape(geometry)
    if tuple(values.shape[1:]) != shape or not values.is_floating_point():
        raise ValueError(
            f"teacher's {signal.name}: got {values.dtype}{tuple(values.shape)}, expected floating"
            f" point (n, {', '.join(map(str, shape))}) for {geometry.name}"
        )
    # One reduction instead of a mask of the tensor's size: any NaN or infinity survives it.
    low, high = torch.aminmax(values.detach())
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise ValueError(f"teacher's {signal.name} holds NaN or infinity ({geometry.name})")


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


def to_half(tensor: Tensor, name: str, remedy: str) -> Tensor:
    """Convert to float16.

    Raises:
        ValueError: a value is beyond float16's range; says `remedy`.
    """
    half = tensor.to(torch.float16)
    low, high = torch.aminmax(half)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise ValueError(f"teacher's {name} exceeds the range of float16 (65504): {remedy}")
    return half
