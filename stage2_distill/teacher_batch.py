"""The teacher's outputs for one training batch, brought onto the batch's grid.

Records of one batch may differ in padded size. A smaller record's maps lie at the top left of the
batch's grid and are extended by edge replication, because zeros would change ROIAlign at the
border; anchors outside a record's own grid are marked and take no part in anything.

Shape letters: N images, K classes, A anchors per position, R anchors of an image, C channels,
L levels, S positions of all levels, H_l and W_l the grid of a level. Anchors are ordered level, H,
W, A; positions level, H, W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from storage import Geometry, Signal
from storage.codecs.placing import Placing

LevelSizes = Sequence[tuple[int, int]]

_NAMED = ("features", "scores", "deltas")


@dataclass(frozen=True, kw_only=True)
class TeacherBatch:
    """Decoded teacher outputs of N images on one grid; constants, never with a gradient.

    Attributes:
        features: L tensors (N, C, H_l, W_l) float32; empty where nothing needs them.
        probabilities: (N, R, K) float32, 0..1; zero where not valid.
        deltas: (N, R, 4) float32, in the units of the detector's box transform; zero where not
            valid.
        valid: (N, R) bool, whether the anchor lies on its record's own grid.
        further: signal name to the (N, ...) values of what only some families have.
    """

    features: list[Tensor]
    probabilities: Tensor
    deltas: Tensor
    valid: Tensor
    further: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_values(
        cls, values: Mapping[str, Tensor], level_sizes: LevelSizes, valid: Tensor | None
    ) -> TeacherBatch:
        """Name the signals of a dense detector.

        Args:
            values: signal name to (N, ...) values on the batch's grid.
            level_sizes: of that grid.
            valid: (N, R) bool; None: all.
        """
        scores, features = values["scores"], values.get("features")
        if valid is None:
            valid = scores.new_ones(scores.shape[:2], dtype=torch.bool)
        return cls(
            features=[] if features is None else split_levels(features, level_sizes),
            probabilities=scores,
            deltas=values["deltas"],
            valid=valid,
            further={name: one for name, one in values.items() if name not in _NAMED},
        )


def split_levels(features: Tensor, level_sizes: LevelSizes) -> list[Tensor]:
    """View a flattened pyramid as one map a level.

    Args:
        features: (n, C, S).
        level_sizes: (H_l, W_l) of L levels, S = sum of H_l * W_l.

    Returns:
        L views (n, C, H_l, W_l) of the same memory.

    Raises:
        ValueError: S is not the sum over the levels.
    """
    areas = [height * width for height, width in level_sizes]
    if features.dim() != 3 or features.shape[2] != sum(areas):
        raise ValueError(
            f"features must be (n, C, {sum(areas)}) for the levels {list(level_sizes)}, "
            f"got {tuple(features.shape)}"
        )
    maps = features.split(areas, dim=2)
    return [m.unflatten(2, tuple(size)) for m, size in zip(maps, level_sizes, strict=True)]


def placing_of(
    geometries: Sequence[Geometry], level_sizes: LevelSizes, device: torch.device
) -> Placing | None:
    """Say where records lie on the grid of a batch; None where each fills it.

    Args:
        geometries: of the N records.
        level_sizes: (H_l, W_l) of the batch's L levels.
        device: of the records.

    Raises:
        ValueError: a record has other levels than the batch, or larger ones.
    """
    sizes = tuple((int(height), int(width)) for height, width in level_sizes)
    if all(one.level_sizes == sizes for one in geometries):
        return None
    for one in geometries:
        pairs = zip(one.level_sizes, sizes, strict=False)
        if len(one.level_sizes) != len(sizes) or any(h > H or w > W for (h, w), (H, W) in pairs):
            raise ValueError(
                f"levels {list(one.level_sizes)} do not fit into the batch's levels {list(sizes)}"
            )
    height, width = (max(getattr(one, side) for one in geometries) for side in ("height", "width"))
    return Placing(geometries, Geometry(height, width, sizes), device)


def assemble(
    records: Sequence[Mapping[str, Tensor]],
    signals: Sequence[Signal],
    geometries: Sequence[Geometry],
    level_sizes: LevelSizes,
) -> TeacherBatch:
    """Put decoded records onto the grid of a batch.

    Args:
        records: of each image, signal name to its values.
        signals: what they are.
        geometries: of each record.
        level_sizes: (H_l, W_l) of the batch's L levels, none smaller than a record's.

    Raises:
        ValueError: as `placing_of`.
    """
    placing = placing_of(geometries, level_sizes, records[0]["scores"].device)
    values, valid = {}, None
    for signal in signals:
        of_all = [record[signal.name] for record in records]
        values[signal.name] = placing.values(of_all, signal) if placing else torch.stack(of_all)
        if placing and signal.name == "scores":
            valid = placing.valid(signal.sizes["anchors"])
    return TeacherBatch.of_values(values, level_sizes, valid)
