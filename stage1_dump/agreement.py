"""How far what a cache holds of a record is from what the teacher says now.

Bit for bit where the teacher runs as it did in the dump; elsewhere by the decoded values, because
another machine rounds otherwise, and a code next to a rounding edge then changes as a whole.

Shape letters: C channels, D detections kept an image, K classes, R anchors an image, S positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou
from numpy.typing import NDArray
from torch import Tensor

from storage import Geometry, RecordCodec
from storage.schema import DETECTIONS, PIXELS_CRC, PIXELS_SAMPLE

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far one field is off.

    Attributes:
        field: of the record; of decoded signals, their name.
        difference: the largest absolute difference of two elements. Of `pixels_crc32c`: 1 if the
            checksums differ. Of `detections` and rows compared by value: those without a
            counterpart.
        tolerance: the largest difference that passes.
        same_bits: whether the two are the same, byte for byte; False where values are compared.
    """

    field: str
    difference: float
    tolerance: float
    same_bits: bool = False

    @property
    def agrees(self) -> bool:
        """Whether the field passes; NaN never does."""
        return self.same_bits or (self.tolerance > 0 and self.difference <= self.tolerance)


def distances_in_bits(stored: Arrays, now: Arrays) -> Iterator[Distance]:
    """Compare the codes of one record; a single bit that differs does not agree.

    Args:
        stored, now: field name to array, of equal shapes and types.
    """
    for name, value in stored.items():
        gap = np.abs(value.astype(np.float64) - now[name].astype(np.float64))
        yield Distance(
            field=name,
            difference=float(gap.any() if name == PIXELS_CRC else gap.max(initial=0.0)),
            tolerance=0.0,
            same_bits=value.tobytes() == now[name].tobytes(),
        )


# Largest difference of two machines that compute the same teacher, over the largest value, by
# precision. A ResNet-101 RetinaNet (320x256, seeded weights) on CPUs restricted to SSE, AVX2
# and AVX-512, in other batches and with other thread counts, differed by up to 6e-6 in float32 and
# 2e-2 in bfloat16. float32 gets room for convolutions that a GPU computes by Winograd's method;
# float16 rounds eight times finer than bfloat16, and TF32 has float16's mantissa. Other weights or
# images differ by about 1.
NOISE = {"float32": 1e-3, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}

# A code next to a rounding edge becomes its neighbour: the error of the codec may double.
_CODEC_ERRORS = 2.0
# A sigmoid is nowhere steeper than this.
_STEEPEST_SIGMOID = 0.25

# Boxes that correspond overlap by this much. Non-maximum suppression and the cut at the lowest
# score may turn on the last bits, so that a few boxes (a share of them, at least one) may differ.
_SAME_BOX_IOU = 0.9
_SHARE_OF_OTHER_BOXES = 0.1


def distances_in_value(
    stored: Arrays,
    now: Arrays,
    live: Mapping[str, Tensor],
    codec: RecordCodec,
    geometry: Geometry,
    noise: float,
) -> Iterator[Distance]:
    """Compare what the codes of one record decode to.

    Args:
        stored, now: field name to array; `now` are the codes of `live`.
        live: what the teacher says now, signal name to one record (leading dimension 1).
        codec: of both.
        geometry: of the record.
        noise: relative difference of two machines, see `NOISE`.

    Yields:
        Each signal (of scores, the probabilities), boxes, and checksum and sample of the pixels.
        The tolerance is what the codec itself loses of `live`, twice, and the noise.
    """
    ours, theirs = (_decode(codes, codec, geometry) for codes in (now, stored))
    for signal, _ in codec.signals:
        value, scale = live[signal.name], _largest(live[signal.name])
        if signal.kind == "scores":
            value, scale = value.sigmoid(), scale * _STEEPEST_SIGMOID
        lost = _largest(ours[signal.name] - value)
        tolerance = _CODEC_ERRORS * lost + noise * scale
        if signal.kind in ("boxes", "rows"):
            yield _distance_of_rows(signal.name, theirs[signal.name][0], value[0], tolerance)
            continue
        difference = _largest(theirs[signal.name] - value)
        yield Distance(field=signal.name, difference=difference, tolerance=tolerance)
    yield _distance_of_boxes(stored[DETECTIONS], now[DETECTIONS], noise)
    # Pixels are integers: no machine renders them otherwise with the same Pillow.
    yield from distances_in_bits({name: stored[name] for name in (PIXELS_CRC, PIXELS_SAMPLE)}, now)


def _distance_of_boxes(stored: NDArray[Any], now: NDArray[Any], noise: float) -> Distance:
    """Count the boxes of either side without one of the same class, place and score on the other.

    Args:
        stored, now: (D, 6) float32 rows x1 y1 x2 y2 score class; unused ones have score -1.
    """
    ours, theirs = (torch.from_numpy(rows[rows[:, 4] >= 0].copy()) for rows in (now, stored))
    near = pairwise_iou(Boxes(ours[:, :4]), Boxes(theirs[:, :4])) >= _SAME_BOX_IOU
    near &= ours[:, None, 5] == theirs[None, :, 5]
    # The scores of a wrong box, like its place, are off by far more.
    near &= (ours[:, None, 4] - theirs[None, :, 4]).abs() <= 10 * noise
    return _distance_of_counterparts(DETECTIONS, near)


def _distance_of_rows(name: str, stored: Tensor, now: Tensor, tolerance: float) -> Distance:
    """Count the rows of either side without a near one on the other, wherever that stands.

    One proposal that non-maximum suppression takes or leaves moves all those behind it.

    Args:
        name: of the signal.
        stored, now: (P, columns) values.
        tolerance: the largest difference of two elements of near rows.
    """
    return _distance_of_counterparts(name, torch.cdist(now, stored, p=torch.inf) <= tolerance)


def _distance_of_counterparts(name: str, near: Tensor) -> Distance:
    """The distance by what has no counterpart: (ours, theirs) bool, which are counterparts."""
    alone = int((~near.any(dim=1)).sum() + (~near.any(dim=0)).sum())
    allowed = _SHARE_OF_OTHER_BOXES * sum(near.shape)
    return Distance(field=name, difference=float(alone), tolerance=max(2.0, float(int(allowed))))


def _decode(codes: Arrays, codec: RecordCodec, geometry: Geometry) -> dict[str, Tensor]:
    # A copy: read from a cache, arrays are read-only, which PyTorch does not know.
    of_signals = {name: code for name, code in codes.items() if "." in name}
    tensors = {name: torch.from_numpy(np.array(code))[None] for name, code in of_signals.items()}
    return codec.decode(tensors, geometry)


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
