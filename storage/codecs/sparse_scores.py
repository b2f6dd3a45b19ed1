"""Codecs of class scores: the largest of a record kept, a model of all others.

`sparse_scores` keeps them as pairs of 32-bit index and 16-bit probability. `packed_scores` keeps
fewer, with indices as gaps and 8-bit values on a square-root scale (small probabilities are the
more numerous), all of it under Zstandard.

With one class the logits are stored densely in 16 bits, which is smaller than either.

Shape letters: n records, A anchors per position, K classes, R anchors of an image, M kept scores of
a record.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from storage.codecs import dropped_scores, quantising
from storage.codecs.base import Codes, PlacedCodec, of_all
from storage.codecs.dense import DenseScores
from storage.codecs.dropped_scores import ScoreGrid
from storage.codecs.placing import Placing
from storage.schema import Field, Geometry
from storage.signals import Signal

_DENSE = DenseScores(dtype="float16")
_DENSE_BYTES = 2
# Mean and power of the scores that are dropped, 12 bits per anchor.
_REST_BYTES = 1.5


@dataclass(frozen=True, kw_only=True)
class KeptScores(PlacedCodec):
    """The M largest scores of a record, and a model of the others.

    The rule for M follows R rather than R * K, since the anchors that see an object, not the
    classes, decide how many probabilities are worth a place of their own; its least value, since
    small images have objects too.

    Attributes:
        kept: M; 0 for the codec's rule.
        anchors_per_score: by the rule, M = R / anchors_per_score.
        least_scores: but at least this, and at most all.
        bytes_per_score: of one that is kept.
        steps_per_octave: fineness of the means of those that are not.
    """

    kinds: ClassVar[tuple[str, ...]] = ("scores",)
    small: ClassVar[frozenset[str]] = frozenset({"profile", "bound"})
    holds_values: ClassVar[bool] = True  # where one class is stored densely
    anchors_per_score: ClassVar[int]
    least_scores: ClassVar[int]
    bytes_per_score: ClassVar[int]
    steps_per_octave: ClassVar[int]
    kept: int = 0

    def __post_init__(self) -> None:
        if type(self.kept) is not int or self.kept < 0:
            raise ValueError(f"scores_kept: got {self.kept!r}, expected an integer >= 0")

    def num_kept(self, grid: ScoreGrid) -> int:
        """Return M."""
        by_rule = max(self.least_scores, -(-grid.num_boxes // self.anchors_per_score))
        return min(self.kept or by_rule, grid.num_boxes * grid.num_classes)

    def is_dense(self, signal: Signal) -> bool:
        """Whether the logits themselves take fewer bytes, in records that are not tiny."""
        sparse = _REST_BYTES + self.bytes_per_score / self.anchors_per_score
        return not self.kept and signal.sizes["classes"] * _DENSE_BYTES < sparse

    @abstractmethod
    def kept_fields(self, grid: ScoreGrid) -> list[Field]:
        """The fields of the scores that are kept."""

    @abstractmethod
    def encode_kept(self, index: Tensor, value: Tensor) -> dict[str, Tensor]:
        """Code (n, M) int64 ascending indices and (n, M) float32 probabilities."""

    @abstractmethod
    def decode_index(self, codes: Codes) -> Tensor:
        """Indices (n, M) int64; where a record has fewer than M, any at its end."""

    @abstractmethod
    def decode_value(self, codes: Codes) -> Tensor:
        """Probabilities (n, M) float32."""

    def fields(self, signal: Signal, geometry: Geometry) -> list[Field]:
        if self.is_dense(signal):
            return _DENSE.fields(signal, geometry)
        grid = ScoreGrid.of(signal, geometry)
        rest = dropped_scores.rest_fields(grid, self.steps_per_octave)
        return [*self.kept_fields(grid), *rest]

    def encode(self, values: Tensor, signal: Signal, geometry: Geometry) -> dict[str, Tensor]:
        if self.is_dense(signal):
            return _DENSE.encode(values, signal, geometry)
        grid = ScoreGrid.of(signal, geometry)
        index, value, dropped = dropped_scores.keep_largest(values, self.num_kept(grid))
        rest = dropped_scores.encode_rest(dropped, index, grid, self.steps_per_octave)
        return self.encode_kept(index, value) | rest

    def decode(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        if self.is_dense(signal):
            return _DENSE.decode(codes, signal, geometry)
        return super().decode(codes, signal, geometry)

    def decode_placed(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Tensor:
        if self.is_dense(signal):
            return _DENSE.decode_placed(records, signal, placing)
        return super().decode_placed(records, signal, placing)

    def unpack(self, codes: Codes, signal: Signal, geometry: Geometry) -> Codes:
        num_boxes = ScoreGrid.of(signal, geometry).num_boxes
        power = dropped_scores.unpack_power(codes["power"], num_boxes)
        return {**codes, "power": power, "index": self.decode_index(codes)}

    def place(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Codes:
        grid = ScoreGrid.of(signal, placing.grid)
        num_kept, step = self.num_kept(grid), grid.num_anchors * grid.num_classes
        names = [one.name for one in self.kept_fields(grid)]
        counts = [one.shape[-1] for one in of_all(records, names[0])]
        kept = {name: placing.padded(of_all(records, name), num_kept) for name in names}
        index = placing.scores(self.decode_index(kept), counts, step)
        rest = dropped_scores.place_rest(records, placing, grid.num_anchors)
        return {**kept, **rest, "index": index}

    def decode_unpacked(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        return dropped_scores.decode_scores(
            codes["index"],
            self.decode_value(codes),
            codes,
            ScoreGrid.of(signal, geometry),
            self.steps_per_octave,
        )


@dataclass(frozen=True, kw_only=True)
class SparseScores(KeptScores):
    """A quarter of R kept, at least 8,192, 6 bytes each."""

    name: ClassVar[str] = "sparse_scores"
    anchors_per_score: ClassVar[int] = 4
    least_scores: ClassVar[int] = 8192
    bytes_per_score: ClassVar[int] = 6
    steps_per_octave: ClassVar[int] = 16
    value_limit: ClassVar[int] = 32_767

    def kept_fields(self, grid: ScoreGrid) -> list[Field]:
        num_kept, num_scores = self.num_kept(grid), grid.num_boxes * grid.num_classes
        return [
            Field(
                "index", (num_kept,), "int32",
                attributes={
                    "meaning": "anchor * classes + class of each kept score, ascending",
                    "limits": {"least": 0, "most": num_scores - 1, "order": "ascending"},
                },
            ),
            Field(
                "value", (num_kept,), "int16",
                attributes={
                    "meaning": f"probability of each kept score = code / {self.value_limit}",
                    "limits": {"least": 0, "most": self.value_limit},
                },
            ),
        ]  # fmt: skip

    def encode_kept(self, index: Tensor, value: Tensor) -> dict[str, Tensor]:
        codes = (value * self.value_limit).round_().to(torch.int16)
        return {"index": index.to(torch.int32), "value": codes}

    def decode_index(self, codes: Codes) -> Tensor:
        return codes["index"].to(torch.int64)

    def decode_value(self, codes: Codes) -> Tensor:
        return codes["value"].to(torch.float32).div_(self.value_limit)


@dataclass(frozen=True, kw_only=True)
class PackedScores(KeptScores):
    """An eighth of R kept, at least 4,096, 5 bytes each before compression."""

    name: ClassVar[str] = "packed_scores"
    small: ClassVar[frozenset[str]] = frozenset({"bound"})
    compression: ClassVar[str | None] = "zstd"
    anchors_per_score: ClassVar[int] = 8
    least_scores: ClassVar[int] = 4096
    bytes_per_score: ClassVar[int] = 5
    steps_per_octave: ClassVar[int] = 8
    value_limit: ClassVar[int] = 255

    def kept_fields(self, grid: ScoreGrid) -> list[Field]:
        num_kept, num_scores = self.num_kept(grid), grid.num_boxes * grid.num_classes
        return [
            Field(
                "gap", (4, num_kept), "uint8",
                attributes={
                    "meaning": "index of each kept score minus the one before, ascending; byte"
                    " planes of a 32-bit number, lowest first; index = anchor * classes + class",
                    "anchors": "level, H, W, A",
                    "limits": {"least": 0, "most": num_scores - 1, "order": "gaps"},
                },
            ),
            Field(
                "value", (num_kept,), "uint8",
                attributes={
                    "meaning": f"probability of each kept score = (code / {self.value_limit})^2"
                },
            ),
        ]  # fmt: skip

    def encode_kept(self, index: Tensor, value: Tensor) -> dict[str, Tensor]:
        codes = (value.sqrt() * self.value_limit).round_().to(torch.uint8)
        return {"gap": encode_gaps(index), "value": codes}

    def decode_index(self, codes: Codes) -> Tensor:
        return decode_gaps(codes["gap"])

    def decode_value(self, codes: Codes) -> Tensor:
        return codes["value"].to(torch.float32).div_(self.value_limit).square_()

    def typical_bytes(self, signal: Signal, geometry: Geometry) -> int | None:
        if self.is_dense(signal):
            return None
        grid = ScoreGrid.of(signal, geometry)
        num_kept = self.num_kept(grid)
        share = quantising.typical_share
        profile = geometry.num_levels * grid.num_anchors * grid.num_classes * 0.8
        values = num_kept * share(geometry, 0.65, 0.03) + profile
        rest = grid.num_boxes * (share(geometry, 0.7, -0.02) + share(geometry, 0.45, 0.06) / 2)
        return round(values + rest) + _typical_gaps(num_kept, grid)


def encode_gaps(index: Tensor) -> Tensor:
    """Code (n, M) ascending indices as the byte planes (n, 4, M) uint8 of their gaps."""
    gaps = index.diff(dim=1, prepend=torch.zeros_like(index[:, :1]))
    return torch.stack([gaps >> shift & 255 for shift in (0, 8, 16, 24)], dim=1).to(torch.uint8)


def decode_gaps(planes: Tensor) -> Tensor:
    """Undo `encode_gaps`: (n, 4, M) uint8 to (n, M) int64."""
    shifts = torch.arange(0, 32, 8, device=planes.device)
    return (planes.to(torch.int64) << shifts[:, None]).sum(dim=1).cumsum(dim=1)


# Of the bits that the gaps would take if the kept scores were anywhere.
_GAP_SHARE = 0.65


def _typical_gaps(num_kept: int, grid: ScoreGrid) -> int:
    """Bytes of the gaps; by their entropy, which falls where almost all scores are kept."""
    kept = num_kept / (grid.num_boxes * grid.num_classes)
    dropped = 1 - kept
    entropy = -sum(share * math.log2(share) for share in (kept, dropped) if share)
    # Four planes, most of them zeros, take some bytes at the least.
    return round(_GAP_SHARE * entropy / kept * num_kept / 8) + 50
