"""Which of a teacher's signals and pyramid levels a cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from detectron2.config import CfgNode
from torch import Tensor

from configs.stock_limits import value_of
from storage import Geometry, Signal

from .families import DenseOutputs, DetectorFamily

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What is kept of the outputs of one detector.

    Attributes:
        cfg, family: of the detector.
        signals: that are kept.
        levels: name of each level that is kept, finest first, to its stride in pixels.
    """

    cfg: CfgNode
    family: DetectorFamily
    signals: tuple[Signal, ...]
    levels: dict[str, int]

    @classmethod
    def of(
        cls,
        cfg: CfgNode,
        family: DetectorFamily,
        *,
        signals: Sequence[str] = (),
        levels: Sequence[str] = (),
    ) -> Stored:
        """Choose by name; all where no name is given.

        Args:
            cfg, family: of the detector.
            signals: `CACHE.SIGNALS`.
            levels: `CACHE.LEVELS`.

        Raises:
            ValueError: the detector has no such signal or level; lists those that it has.
        """
        return cls(
            cfg=cfg,
            family=family,
            signals=tuple(
                _chosen(
                    "CACHE.SIGNALS", signals, {one.name: one for one in family.signals(cfg)}, cfg
                ).values()
            ),
            levels=_chosen("CACHE.LEVELS", levels, family.levels(cfg), cfg),
        )

    @property
    def num_classes(self) -> int:
        """K of the detections."""
        return int(value_of(self.cfg, self.family.num_classes_key))

    @cached_property
    def size_divisibility(self) -> int:
        """The detector pads images to multiples of this, pixels."""
        return self.family.size_divisibility(self.cfg)

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """Numbers of the levels that are kept, among those of the detector."""
        names = list(self.family.levels(self.cfg))
        return tuple(names.index(name) for name in self.levels)

    def geometry(self, height: int, width: int) -> Geometry:
        """Grids of the kept levels for views padded to `height` x `width` pixels."""
        size = (height, width)
        if size not in self._geometries:
            sizes = self.family.geometry(self.cfg, *size).level_sizes
            self._geometries[size] = Geometry(*size, tuple(sizes[level] for level in self.kept))
        return self._geometries[size]

    @cached_property
    def _geometries(self) -> dict[tuple[int, int], Geometry]:
        """Those that are known: each image of each step asks for one."""
        return {}

    def values(self, outputs: DenseOutputs) -> dict[str, Tensor]:
        """The kept signals of a batch, by name."""
        values = outputs.on_levels(self.kept).signals()
        return {one.name: values[one.name] for one in self.signals}


def _chosen(key: str, names: Sequence[str], known: dict[str, T], cfg: CfgNode) -> dict[str, T]:
    """Those of `known` that are named, in its own order; all if no name is given."""
    for name in names:
        if name not in known:
            raise ValueError(
                f"{key}: {name!r}, expected some of {', '.join(known)}, which"
                f" a {cfg.MODEL.META_ARCHITECTURE} has"
            )
    return {name: one for name, one in known.items() if not names or name in names}
