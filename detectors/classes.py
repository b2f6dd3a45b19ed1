"""A student of some of its teacher's classes: which ones they are (TEACHER.CLASSES).

A checkpoint names no classes, so that a config must. The student's are those of its data.

Shape letters: K classes of the teacher, k of the student, D rows for detections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from configs.wording import listed


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """Where the student's classes are among the teacher's.

    Attributes:
        names: the teacher's K classes, in the order of its outputs.
        columns: the teacher's number of each of the student's k classes, in the student's order.
    """

    names: tuple[str, ...]
    columns: tuple[int, ...]

    @classmethod
    def of_names(
        cls, ours: Sequence[str], theirs: Sequence[str], *, key: str, data: str, num_classes: int
    ) -> ClassMap:
        """Find classes by their names.

        Args:
            ours: the student's, in the order of its outputs.
            theirs: the teacher's, in the order of its own.
            key: which names the teacher's, for messages.
            data: which has the student's, for messages.
            num_classes: that the teacher has.

        Raises:
            ValueError: a name is given twice, or there are not as many as the teacher has classes,
                or the student has one that the teacher lacks.
        """
        twice = [name for name, count in Counter(theirs).items() if count > 1]
        if twice:
            raise ValueError(f"{key} names {_quoted(twice)} more than once; give each class once")
        if len(theirs) != num_classes:
            raise ValueError(
                f"{key} names {len(theirs)} classes, but the teacher has {num_classes}; name all "
                "of its classes, in the order of its outputs"
            )
        numbers = {name: number for number, name in enumerate(theirs)}
        lacking = [name for name in ours if name not in numbers]
        if lacking:
            raise ValueError(
                f"{key} has no {_quoted(lacking)}, which {data} has; it names {_quoted(theirs)}: "
                "spell them alike, or leave such categories out of the data"
            )
        return cls(names=tuple(theirs), columns=tuple(numbers[name] for name in ours))

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.names)

    def __str__(self) -> str:
        dropped = [name for n, name in enumerate(self.names) if n not in self.columns]
        kept = f"{len(self.columns)} of the teacher's {self.num_classes} classes"
        return f"{kept}; dropped: {', '.join(dropped) or 'none'}"

    def scores(self, values: Tensor) -> Tensor:
        """Of (..., K), or of (..., K + 1) with the background last, the student's: as many less.

        What has another number of columns, such as objectness, is of no class and stays. Of a
        softmax's logits, what is left is the teacher's belief given that it is none of the classes
        dropped.
        """
        if values.shape[-1] == self.num_classes:
            return values.index_select(-1, _tensor(self.columns, values.device))
        if values.shape[-1] == self.num_classes + 1:
            columns = (*self.columns, self.num_classes)
            return values.index_select(-1, _tensor(columns, values.device))
        return values

    def is_foreign(self, classes: Tensor) -> Tensor:
        """Whether class numbers of the teacher, of any shape, are none of the student's."""
        return self._ours(classes) < 0

    def detections(self, rows: Tensor) -> Tensor:
        """Rows (..., D, 6) as `pack_detections` writes them, of the student's classes alone.

        Those of others become rows that are not used, in their places.
        """
        used = rows[..., 4] >= 0
        number = self._ours(torch.where(used, rows[..., 5], 0.0).long())
        kept = (used & (number >= 0))[..., None]
        found = torch.cat([rows[..., :5], number[..., None].to(rows.dtype)], dim=-1)
        return torch.where(kept, found, _tensor((0, 0, 0, 0, -1, -1), rows.device).to(rows.dtype))

    def rows(self, weights: Tensor, values: int) -> Tensor:
        """Of weights or biases of a layer that tells classes apart, the rows of the student's.

        Args:
            weights: (A * K * values, ...), or (K + 1, ...) with the background last; another number
                of rows is that of a layer that tells none apart, and stays.
            values: of each class.
        """
        if values == 1 and len(weights) == self.num_classes + 1:
            return weights[[*self.columns, self.num_classes]]
        if len(weights) % (self.num_classes * values):
            return weights
        by_class = weights.unflatten(0, (-1, self.num_classes, values))
        return by_class[:, list(self.columns)].flatten(0, 2)

    def _ours(self, classes: Tensor) -> Tensor:
        """The student's numbers of the teacher's; -1 for those that it has none of."""
        numbers = {theirs: ours for ours, theirs in enumerate(self.columns)}
        table = tuple(numbers.get(theirs, -1) for theirs in range(self.num_classes))
        return _tensor(table, classes.device)[classes]


# Once a device, not in every step: each is a transfer that a GPU is waited for.
@lru_cache(maxsize=32)
def _tensor(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device)


def _quoted(names: Iterable[str]) -> str:
    return listed(repr(name) for name in names)
