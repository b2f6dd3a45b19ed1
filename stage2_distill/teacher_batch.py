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
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from detectors.classes import ClassMap
from storage import Geometry, Signal
from storage.codecs.placing import Placing

LevelSizes = Sequence[tuple[int, int]]

_NAMED = ("features", "scores", "deltas")


@dataclass(frozen=True, kw_only=True)
class TeacherBatch:
    """Decoded teacher outputs of N images on one grid; constants, never with a gradient.

    What nothing needs is empty, and without places or rows.

    Attributes:
        features: L tensors (N, C, H_l, W_l) float32.
        probabilities: (N, R, K) float32, 0..1; zero where not valid.
        deltas: (N, R, 4) float32, in the units of the detector's box transform; zero where not
            valid.
        valid: (N, R) bool, whether the anchor lies on its record's own grid.
        inside: L tensors (N, 1, H_l, W_l) bool, whether the position does.
        further: signal name to the (N, ...) values of what only some families have.
        detections: (N, D, 6) float32, the final boxes of each view, see `pack_detections`.
        foreign: (N, P) bool, the proposals whose deltas are of a class that the student lacks; None
            where it has all of the teacher's.
    """

    features: list[Tensor]
    probabilities: Tensor
    deltas: Tensor
    valid: Tensor
    inside: list[Tensor] = field(default_factory=list)
    further: Mapping[str, Tensor] = field(default_factory=dict)
    detections: Tensor = field(default_factory=lambda: torch.empty(0, 0, 6))
    foreign: Tensor | None = None

    @classmethod
    def of_values(
        cls,
        values: Mapping[str, Tensor],
        grid: Grid,
        *,
        num_anchors: int,
        detections: Tensor | None = None,
    ) -> TeacherBatch:
        """Name the signals of a dense detector.

        Args:
            values: signal name to (N, ...) values on the grid, those that are needed.
            grid: of the batch.
            num_anchors: per position; 0 where nothing of the places is needed.
            detections: (N, D, 6), where they are needed.
        """
        inside = grid.inside
        none = torch.empty(len(inside), 0, 0, device=inside.device)
        features = split_levels(values["features"], grid.sizes) if "features" in values else []
        levels = split_levels(inside[:, None], grid.sizes)
        return cls(
            features=[features[level] for level in grid.kept] if features else [],
            probabilities=values.get("scores", none),
            deltas=values.get("deltas", none),
            valid=inside.repeat_interleave(num_anchors, dim=1),
            inside=[levels[level] for level in grid.kept],
            further={name: one for name, one in values.items() if name not in _NAMED},
            **({} if detections is None else {"detections": detections}),
        )

    def of_classes(self, classes: ClassMap) -> TeacherBatch:
        """The same, as if the teacher had the student's classes alone.

        Scores are those of its classes, in its order; detections of other classes are no longer
        used. The teacher's second stage gives deltas of its best class alone: where that is one
        which the student lacks, they are `foreign`.
        """
        found = replace(
            self,
            probabilities=classes.scores(self.probabilities),
            detections=classes.detections(self.detections),
        )
        logits = self.further.get("proposal_scores")
        if logits is None:
            return found
        return replace(
            found,
            further={**self.further, "proposal_scores": classes.scores(logits)},
            foreign=classes.is_foreign(logits[..., :-1].argmax(dim=-1)),
        )


class Grid:
    """Where the records of a batch lie: at the top left of each level.

    Attributes:
        sizes: (H_l, W_l) of every level of the records.
        kept: numbers of those that are handed on.
        placing: what brings the records there; None where each fills it.
        inside: (N, S) bool, the positions that are a record's own.
    """

    def __init__(
        self,
        geometries: Sequence[Geometry],
        level_sizes: LevelSizes,
        kept: Sequence[int],
        device: torch.device,
    ) -> None:
        """Args:

        geometries: of the N records.
        level_sizes: (H_l, W_l) of the student's batch, for the levels that it shares.
        kept: their numbers among the levels of the records; the others are as large as the
            records need.
        device: of the records.

        Raises:
            ValueError: a record does not fit.
        """
        sizes = [
            tuple(max(one.level_sizes[level][side] for one in geometries) for side in (0, 1))
            for level in range(len(geometries[0].level_sizes))
        ]
        for level, (height, width) in zip(kept, level_sizes, strict=True):
            sizes[level] = (int(height), int(width))
        self.sizes = [(height, width) for height, width in sizes]
        self.kept = list(kept)
        self.placing = placing_of(geometries, self.sizes, device)
        if self.placing is not None:
            self.inside = self.placing.inside
        else:
            shape = (len(geometries), sum(height * width for height, width in self.sizes))
            self.inside = torch.ones(shape, dtype=torch.bool, device=device)


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
    records: Sequence[Mapping[str, Tensor]], signals: Sequence[Signal], grid: Grid
) -> dict[str, Tensor]:
    """Put decoded records onto the grid of a batch: signal name to (N, ...).

    Args:
        records: of each image, signal name to its values.
        signals: what they are.
        grid: of the batch.
    """
    values = {}
    for signal in signals:
        of_all = [record[signal.name] for record in records]
        values[signal.name] = (
            grid.placing.values(of_all, signal) if grid.placing else torch.stack(of_all)
        )
    return values
