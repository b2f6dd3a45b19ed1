"""What an annotation file holds, filled in, and what is wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dataset.boxes import BoxWarnings
from dataset.elements import Problem
from dataset.tables import ImageTable, ObjectTable

# Kind of the errors that a file has for lack of objects or categories.
LABELS = "labels"


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """What an annotation file holds, filled in, and what is wrong with it.

    Attributes:
        path: the file.
        images: those that are not refused.
        objects: those that are not refused, of images and categories that are not.
        categories: id to name, by ascending id; class numbers are positions in it.
        counts: elements in the file, by section.
        errors: what every command refuses.
        image_errors: those of them that are of images.
        notes: warnings about the set as a whole.
        box_warnings: warnings about single boxes.
    """

    path: str
    images: ImageTable
    objects: ObjectTable
    categories: dict[int, str]
    counts: dict[str, int]
    errors: tuple[Problem, ...]
    image_errors: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    box_warnings: BoxWarnings

    def problems(self) -> Iterator[Problem]:
        """All errors, then all warnings, one for each box."""
        yield from self.errors
        yield from self.notes
        for _, found in self.box_warnings.groups():
            yield from found

    def warnings(self) -> list[str]:
        """The warnings as lines that name the file, one for all boxes of a kind."""
        lines = [f"{self.path}: {note.sentence}" for note in self.notes]
        for count, found in self.box_warnings.groups():
            lines.append(f"{self.path}: {next(found).sentence}{self._and_more(count - 1, 'boxes')}")
        return lines

    def refuse(self) -> None:
        """Raise what is wrong.

        Raises:
            ValueError: there are errors; the message names the file and the first of them.
        """
        if self.errors:
            more = self._and_more(len(self.errors) - 1, "errors")
            raise ValueError(f"{self.path}: {self.errors[0].sentence}{more}")

    def images_alone(self) -> Annotations:
        """The same where nothing but its images is used: errors of its labels are none."""
        return replace(self, errors=self.image_errors)

    def unlabelled(self) -> Annotations:
        """The same as a set of which only the images are known, which needs no categories.

        Raises:
            ValueError: it holds objects.
        """
        count = self.counts["annotations"]
        if count:
            raise ValueError(
                f"{self.path}: holds {count} objects, but DATASETS.UNLABELED is of images without; "
                "name the set in DATASETS.TRAIN, or write one without them: python -m dataset "
                "unlabeled --annotations FILE --output FOLDER"
            )
        return replace(
            self,
            errors=tuple(one for one in self.errors if one.kind != LABELS),
            notes=tuple(one for one in self.notes if one.kind != "category"),
        )

    @property
    def class_ids(self) -> dict[int, int]:
        """Category id to class number, as detectron2 counts: by ascending id, from 0."""
        return {category_id: number for number, category_id in enumerate(self.categories)}

    @property
    def category_counts(self) -> dict[int, int]:
        """Category id to the number of its objects."""
        counts = Counter(self.objects.category_ids.tolist())
        return {category_id: counts[category_id] for category_id in self.categories}

    def _and_more(self, count: int, what: str) -> str:
        if count < 1:
            return ""
        # A function of the user's has no file that a command could be given.
        hint = "; `python -m dataset check` lists them" if os.path.exists(self.path) else ""
        return f" (and {count} more {what}{hint})"
