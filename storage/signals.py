"""Signals: the things that a record holds of a teacher, each with a name, a kind and sizes.

Shape letters: n records, A anchors per position, C channels, K classes, P rows, S positions of all
levels, R anchors of an image (R = S * A).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from storage import canonical
from storage.schema import MAX_COUNT, TAKEN, Geometry, check_count, check_name

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Kind:
    """What signals of one kind have in common.

    Attributes:
        sizes: names of the sizes that such a signal states.
        shape: of one record's values, from these sizes and the record's geometry.
    """

    sizes: tuple[str, ...]
    shape: Callable[[Sizes, Geometry], tuple[int, ...]]


def _of_anchors(columns: str) -> Callable[[Sizes, Geometry], tuple[int, ...]]:
    return lambda sizes, geometry: (
        geometry.num_positions * sizes["anchors"],
        sizes[columns] if columns else 4,
    )


KINDS: Mapping[str, Kind] = {
    # (C, S) of a pyramid, positions in the order level, H, W.
    "maps": Kind(
        ("channels",), lambda sizes, geometry: (sizes["channels"], geometry.num_positions)
    ),
    # (R, K) logits of a sigmoid, anchors in the order level, H, W, A. Decoded: probabilities.
    "scores": Kind(("anchors", "classes"), _of_anchors("classes")),
    # (R, 4) box regression, unitless, anchors in the same order.
    "deltas": Kind(("anchors",), _of_anchors("")),
    # (P, 4) XYXY_ABS, pixels of the view.
    "boxes": Kind(("rows",), lambda sizes, _: (sizes["rows"], 4)),
    # (P, columns), one row for each of something else than anchors.
    "rows": Kind(("rows", "columns"), lambda sizes, _: (sizes["rows"], sizes["columns"])),
}


@dataclass(frozen=True)
class Signal:
    """One of the things that a record holds of the teacher.

    Attributes:
        name: lower-case, also that of its array.
        kind: one of `KINDS`.
        sizes: the numbers that its kind asks for.

    Raises:
        ValueError: an unknown kind, other sizes than it has, or a name that is taken.
    """

    name: str
    kind: str
    sizes: Sizes = field(hash=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"signal {self.name}: kind {self.kind!r}, expected one of {', '.join(KINDS)}"
            )
        if check_name("signal", self.name) in TAKEN:
            raise ValueError(f"signal {self.name}: every record has something of that name")
        wanted = KINDS[self.kind].sizes
        if set(self.sizes) != set(wanted):
            raise ValueError(
                f"signal {self.name}: sizes {sorted(self.sizes)}, expected {sorted(wanted)} for the"
                f" kind {self.kind}"
            )
        for name, size in self.sizes.items():
            check_count(f"signal {self.name}: {name}", size, 1, MAX_COUNT)
        object.__setattr__(self, "sizes", canonical.normalise(dict(self.sizes)))

    def shape(self, geometry: Geometry) -> tuple[int, ...]:
        """Shape of one record's values."""
        return KINDS[self.kind].shape(self.sizes, geometry)

    def to_json(self) -> dict[str, Any]:
        """Return kind and sizes as JSON."""
        return {"kind": self.kind, "sizes": dict(self.sizes)}
