"""Records of several padded sizes on one grid. Not a codec.

Shape letters: n records, A anchors per position, K classes, S positions of all levels of the grid,
s of one record's own levels, R anchors an image of the grid, r of one record's own, M kept scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from storage.schema import Geometry
from storage.signals import Signal


class Placing:
    """Where n records lie on a grid: at the top left of each level, their last row and column
    repeated beyond.

    Attributes:
        geometries: of the records, none with a level larger than the grid's.
        grid: what they lie on.
        inside: (n, S) bool, the positions that are the record's own.
    """

    def __init__(
        self, geometries: Sequence[Geometry], grid: Geometry, device: torch.device
    ) -> None:
        """Args:

        geometries: of the records, none with a level larger than the grid's.
        grid: of what is asked for.
        device: of the codes.
        """
        self.grid = grid
        self.geometries = list(geometries)
        self._device = device
        level, *places = _places(grid.level_sizes, device).unbind()
        own = self._to_device([_ends(geometry) for geometry in geometries])  # [n, L, 4]
        last_row, last_column, width, start = own.index_select(1, level).unbind(2)  # [n, S]
        row, column = torch.minimum(places[0], last_row), torch.minimum(places[1], last_column)
        self.inside = (row == places[0]) & (column == places[1])
        firsts, self._total = [0], 0
        for geometry in geometries:
            self._total += geometry.num_positions
            firsts.append(self._total)
        self._firsts = self._to_device(firsts[:-1])[:, None]  # [n, 1]
        # The nearest position of the record's own, as they lie one record after another.
        self._nearest = (start + row * width + column + self._firsts).flatten()

    def valid(self, num_anchors: int) -> Tensor:
        """(n, R) bool, the anchors that are the record's own, A of them per position."""
        return self.inside.repeat_interleave(num_anchors, dim=1)

    def values(self, records: Sequence[Tensor], signal: Signal) -> Tensor:
        """Place one record's values of a signal each: (n, ...) on the grid."""
        if signal.kind == "maps":
            return self.positions(records)
        return self.anchors(records) if "anchors" in signal.sizes else torch.stack(list(records))

    def positions(self, fields: Sequence[Tensor], *, outside: int | None = None) -> Tensor:
        """Place n fields (C, s): (n, C, S), the nearest value, or `outside` where it is given."""
        joined = torch.cat(list(fields), dim=1)
        placed = joined.gather(1, self._nearest.expand(len(joined), -1))
        placed = placed.view(len(joined), *self.inside.shape).movedim(0, 1)
        if outside is not None:
            placed.masked_fill_(~self.inside[:, None], outside)
        return placed

    def anchors(self, fields: Sequence[Tensor]) -> Tensor:
        """Place n fields (r, ...): (n, R, ...), zero outside."""
        joined = torch.cat(list(fields)).view(self._total, -1)  # [sum of s, A * ...]
        placed = joined.index_select(0, self._nearest)
        placed.masked_fill_(~self.inside.flatten()[:, None], 0)
        return placed.view(len(fields), -1, *fields[0].shape[1:])

    def padded(self, fields: Sequence[Tensor], length: int) -> Tensor:
        """Join n fields (..., m) behind one another, zeros up to `length`: (n, ..., length)."""
        zeros = fields[0].new_zeros((*fields[0].shape[:-1], length))
        parts = [part for one in fields for part in (one, zeros[..., : length - one.shape[-1]])]
        joined = torch.cat(parts, dim=-1)
        return joined.view(*joined.shape[:-1], len(fields), length).movedim(-2, 0)

    def scores(self, index: Tensor, counts: Sequence[int], step: int) -> Tensor:
        """Move kept scores to the grid.

        Args:
            index: (n, M) int64 flat indices anchor * K + class on the record's own levels.
            counts: how many of each record count; fewer than M only where its grid is smaller.
            step: A * K, the scores of a position.

        Returns:
            (n, M) int64 on the grid; those that do not count at an anchor that is not valid.
        """
        images, positions = self.inside.shape
        own = torch.where(self.inside.flatten(), self._nearest, self._total)
        numbers = torch.arange(positions, device=self._device).repeat(images)
        places = own.new_empty(self._total + 1).scatter_(0, own, numbers)
        position = torch.div(index, step, rounding_mode="floor")
        moved = places.take(position + self._firsts) * step + (index - position * step)
        spare = [_spare(geometry, self.grid) * step for geometry in self.geometries]
        limits = self._to_device([list(both) for both in zip(counts, spare, strict=True)])
        beyond = torch.arange(index.shape[1], device=self._device) >= limits[:, :1]
        return torch.where(beyond, limits[:, 1:], moved)

    def _to_device(self, values: list[int] | list[list[int]] | list[list[list[int]]]) -> Tensor:
        return torch.tensor(values).to(self._device, non_blocking=True)


def _ends(geometry: Geometry) -> list[list[int]]:
    """Last row, last column, width and first position of every level."""
    starts = geometry.level_offsets[:-1]
    sizes = zip(geometry.level_sizes, starts, strict=True)
    return [[height - 1, width - 1, width, start] for (height, width), start in sizes]


def _spare(geometry: Geometry, grid: Geometry) -> int:
    """A position that is not the record's own; 0 where all are."""
    ends = zip(geometry.level_sizes, grid.level_sizes, grid.level_offsets[1:], strict=True)
    for own, whole, end in ends:
        if own != whole:
            return end - 1
    return 0


@lru_cache(maxsize=32)
def _places(level_sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Level, row and column of every position of a grid: (3, S) int64."""
    levels = []
    for number, (height, width) in enumerate(level_sizes):
        row, column = torch.arange(height * width) // width, torch.arange(height * width) % width
        levels.append(torch.stack([torch.full_like(row, number), row, column]))
    return torch.cat(levels, dim=1).to(device, non_blocking=True)
