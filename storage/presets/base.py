"""What every preset is: a named codec between a teacher's outputs and the fields of a record.

Shape letters: n records, C channels, K classes, S positions of all levels, R anchors an image.

A preset is one module of this package with a class `PRESET` in it. Encoding and decoding are torch
functions on the tensors' own device; a record's codes depend on that record alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from storage.schema import Field, Geometry


@dataclass(frozen=True, kw_only=True)
class RawOutputs:
    """A teacher's outputs for n views of one padded size, of any floating-point type.

    Attributes:
        features: (n, C, S) pyramid, positions in the order level, H, W.
        logits: (n, R, K) class scores before the sigmoid, anchors in the order level, H, W, A.
        deltas: (n, R, 4) box regression, unitless, anchors in the same order.
    """

    features: Tensor
    logits: Tensor
    deltas: Tensor


@dataclass(frozen=True, kw_only=True)
class DecodedOutputs:
    """What a preset gives back, float32.

    Attributes:
        features: (n, C, S).
        probabilities: (n, R, K) sigmoid of the logits, or what stands for it, in [0, 1].
        deltas: (n, R, 4).
        valid: (n, R) bool, the anchors that lie on the record's own grid; None: all.
    """

    features: Tensor
    probabilities: Tensor
    deltas: Tensor
    valid: Tensor | None = None


class Preset(ABC):
    """A codec. Instances are immutable and hold parameters only.

    Attributes:
        name: what configs and manifests call it; also the name of its module.
        version: of what its codes mean; it is raised when codes written before would decode to
            something else, and readers refuse those.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The parameters, as JSON: `get_preset(name, **parameters)` makes an equal preset."""

    @property
    def codec(self) -> dict[str, Any]:
        """Name, version and parameters, as JSON."""
        return {"preset": self.name, "version": self.version, "parameters": self.parameters}

    @abstractmethod
    def fields(self, geometry: Geometry) -> list[Field]:
        """Return the fields of one record, in the order in which they are stored."""

    def typical_bytes(self, geometry: Geometry) -> dict[str, int]:
        """Return what compression is known to leave of one record, by field name, bytes.

        For announcements alone; {} where nothing was measured. Fields that are not compressed are
        not in it: their size is exact.
        """
        return {}

    @abstractmethod
    def _encode(self, raw: RawOutputs, geometry: Geometry) -> dict[str, Tensor]:
        """Encode checked outputs; see `encode`."""

    @abstractmethod
    def _decode(self, codes: Mapping[str, Tensor], geometry: Geometry) -> DecodedOutputs:
        """Decode checked codes; see `decode`."""

    def encode(self, raw: RawOutputs, geometry: Geometry) -> dict[str, Tensor]:
        """Encode n records; the outputs are not modified.

        Returns:
            Field name to (n, *field.shape) tensor of the field's dtype, on the outputs' device.

        Raises:
            ValueError: wrong shapes, or values that are not finite or that the codec cannot hold.
        """
        check_outputs(raw, geometry)
        with torch.no_grad():
            return self._encode(raw, geometry)

    def decode(self, codes: Mapping[str, Tensor], geometry: Geometry) -> DecodedOutputs:
        """Decode n records.

        Args:
            codes: field name to (n, *field.shape), all on one device; further entries are ignored.
            geometry: of the records.

        Raises:
            ValueError: a field is absent or has another shape or dtype than it was written with.
        """
        self._check_codes(codes, geometry)
        with torch.no_grad():
            return self._decode(codes, geometry)

    def decode_onto(
        self,
        records: Sequence[Mapping[str, Tensor]],
        geometries: Sequence[Geometry],
        grid: Geometry,
    ) -> DecodedOutputs | None:
        """Decode n records of several padded sizes together, onto one grid.

        A record lies at the top left of each level. Beyond it, features are those of its last row
        and column; probabilities and deltas are zero, and its anchors not valid.

        Args:
            records: field name to (*field.shape) of each, all on one device.
            geometries: of each record, no level larger than the grid's.
            grid: of what is returned.

        Returns:
            The same as one record at a time would give; None where the preset has no faster way.

        Raises:
            ValueError: as `decode`.
        """
        return None

    def _check_codes(self, codes: Mapping[str, Tensor], geometry: Geometry) -> None:
        for field in self.fields(geometry):
            if field.name not in codes:
                raise ValueError(f"preset {self.name}: field {field.name} is absent")
            tensor = codes[field.name]
            dtype = str(tensor.dtype).removeprefix("torch.")
            if tuple(tensor.shape[1:]) != field.shape or dtype != field.dtype:
                raise ValueError(
                    f"preset {self.name}: field {field.name} is {dtype}{tuple(tensor.shape)},"
                    f" expected {field.dtype}(n, {', '.join(map(str, field.shape))})"
                )


def check_outputs(raw: RawOutputs, geometry: Geometry) -> None:
    """Refuse outputs that do not fit a geometry, or that are not finite.

    Raises:
        ValueError: names the tensor, what it is and what was expected.
    """
    count = len(raw.features)
    num_boxes = geometry.num_boxes
    expected = {
        "features": (count, geometry.channels, geometry.num_positions),
        "logits": (count, num_boxes, geometry.num_classes),
        "deltas": (count, num_boxes, 4),
    }
    for name, shape in expected.items():
        tensor = getattr(raw, name)
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ValueError(
                f"teacher's {name}: got {tensor.dtype}{tuple(tensor.shape)},"
                f" expected floating point {shape} for {geometry.name}"
            )
        # One reduction instead of a mask of the tensor's size: any NaN or infinity survives it.
        low, high = torch.aminmax(tensor.detach())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise ValueError(f"teacher's {name} holds NaN or infinity ({geometry.name})")


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
