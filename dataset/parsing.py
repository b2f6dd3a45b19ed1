"""Parsing of an annotation file: which of its elements hold, beside each other and alone.

What a single element may hold is said in `dataset.elements`; what they must be together is said
here. One cause is one error: an object is not blamed for an image or a category that was refused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.wording import listed
from dataset.boxes import BoxWarnings, all_normalized, judge_boxes
from dataset.coco_json import iterate_sections
from dataset.contents import LABELS, Annotations
from dataset.elements import (
    ElementError,
    Problem,
    describe,
    parse_category,
    parse_image,
    whole_number,
)
from dataset.objects import ObjectColumns
from dataset.tables import ImageTable, ObjectTable

SECTIONS = ("images", "annotations", "categories")
_SHOWN_NAMES = 5
_OWN_IDS = "; give each an id of its own"
# detectron2 allows ids that are given twice in these files of COCO 2014 alone, a known bug.
_WITH_REPEATED_IDS = "minival"


@dataclass
class FileReader:
    """Reads one file: its elements, then what they are together. Use `read` once."""

    path: str
    images: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    objects: ObjectColumns = field(default_factory=ObjectColumns)
    counts: Counter[str] = field(default_factory=Counter)
    # Section to the ids of the elements that were refused, as text: "7" is meant by 7 too.
    refused: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in SECTIONS})
    # Sections in which an element was refused that may have had any id.
    untraceable: set[str] = field(default_factory=set)
    repeated_images: set[int] = field(default_factory=set)
    # Every section at the top of the file, to whether it is an array.
    found: dict[str, bool] = field(default_factory=dict)
    errors: list[Problem] = field(default_factory=list)
    image_errors: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def read(self) -> Annotations:
        """Read the file, and list what is wrong with it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not JSON.
        """
        for section, value, is_array in iterate_sections(self.path):
            self.found[section] = is_array
            if section not in SECTIONS:
                continue
            if not is_array:
                message = f"`{section}` must be a list, got {describe(value)}"
                self._add("section", message, of_images=section == "images")
                continue
            self._add_elements(section, value, self.counts[section])
            self.counts[section] += len(value)
        self._require_sections()
        return self._conclude()

    def _add(self, kind: str, message: str, image: str = "", *, of_images: bool = False) -> None:
        """Note an error; `of_images` says that it is the images', not the labels'."""
        problem = Problem(image, kind, message)
        self.errors.append(problem)
        if of_images:
            self.image_errors.append(problem)

    def _add_elements(self, section: str, elements: list[Any], first_number: int) -> None:
        if section == "annotations":
            self.objects.add(elements, first_number)
            return
        add = self._add_image if section == "images" else self._add_category
        for number, element in enumerate(elements, first_number):
            add(element, number)

    def _refuse(self, section: str, element_id: Any) -> None:
        """Remember an element that was refused, so that no object is blamed for meaning it."""
        self.refused[section].add(_spoken_id(element_id))
        if whole_number(element_id) is None and not isinstance(element_id, str):
            self.untraceable.add(section)

    def _add_image(self, element: Any, number: int) -> None:
        try:
            image_id, file_name, height, width = parse_image(element, number)
        except ElementError as error:
            image = element if isinstance(element, dict) else {}
            name = image.get("file_name")
            shown = name if isinstance(name, str) and name else f"images[{number}]"
            self._add(error.kind, str(error), shown, of_images=True)
            self._refuse("images", image.get("id"))
            return
        if image_id in self.images:
            earlier = self.images[image_id][0]
            message = f"image id {image_id} is also that of {earlier}{_OWN_IDS}"
            self._add("duplicate", message, file_name, of_images=True)
            self.repeated_images.add(image_id)
            self.untraceable.add("images")
            return
        self.images[image_id] = (file_name, height, width)

    def _add_category(self, element: Any, number: int) -> None:
        try:
            category_id, name = parse_category(element, number)
        except ElementError as error:
            self._add(error.kind, str(error))
            self._refuse("categories", element.get("id") if isinstance(element, dict) else None)
            return
        if category_id in self.categories:
            self._add("duplicate", f"category id {category_id} is given twice{_OWN_IDS}")
            self.untraceable.add("categories")
        else:
            self.categories[category_id] = name

    def _require_sections(self) -> None:
        lacking = [section for section in SECTIONS if section not in self.found]
        if lacking:
            held = ", ".join(f"`{name}`" for name in list(self.found)[:_SHOWN_NAMES])
            self._add(
                "section" if "images" in lacking else LABELS,
                "not COCO annotations, there is no list "
                + " and no list ".join(f"`{section}`" for section in lacking)
                + (f"; the file holds {held}" if held else ""),
                of_images="images" in lacking,
            )
        for section in ("images", "categories"):
            if self.found.get(section) and not self.counts[section]:
                is_images = section == "images"
                kind = "section" if is_images else LABELS
                self._add(kind, f"the list `{section}` is empty", of_images=is_images)

    def _conclude(self) -> Annotations:
        images = _image_table(self.images)
        categories = dict(sorted(self.categories.items()))
        objects = self.objects.table()
        objects = self._known("images", "image", images.ids, objects, objects.image_ids)
        known = np.array(list(categories), dtype=np.int64)
        objects = self._known("categories", "category", known, objects, objects.category_ids)
        self._report_objects()
        self._report_repeated_ids(objects)
        boxes = judge_boxes(objects, images, without_size=self.repeated_images)
        if not self.errors:
            self._require_something(objects, boxes)
            self.notes += _class_notes(categories, objects)
        return Annotations(
            path=self.path,
            images=images,
            objects=objects,
            categories=categories,
            counts={name: self.counts[name] for name in SECTIONS},
            errors=tuple(self.errors),
            image_errors=tuple(self.image_errors),
            notes=tuple(self.notes),
            box_warnings=boxes,
        )

    def _report_objects(self) -> None:
        """Add the errors of single objects, except those that follow from a refused image."""
        for element, error in self.objects.refused:
            key = {"image_id": "images", "category_id": "categories"}.get(error.key)
            if key and _spoken_id(element.get(error.key)) in self.refused[key]:
                continue
            image_id = element.get("image_id") if isinstance(element, dict) else None
            self._add(error.kind, str(error), self._name_of(image_id))

    def _name_of(self, image_id: Any) -> str:
        number = whole_number(image_id)
        if number in self.images:
            return self.images[number][0]
        return "" if image_id is None else f"image {image_id}"

    def _known(
        self,
        section: str,
        what: str,
        known: NDArray[np.int64],
        objects: ObjectTable,
        used: NDArray[np.int64],
    ) -> ObjectTable:
        """Drop objects of images or categories that the file lacks; one error for each of these."""
        is_known = np.isin(used, known)
        if is_known.all():
            return objects
        # What was refused without an id may be what the object means; so may a missing list.
        is_traceable = bool(self.counts[section]) and section not in self.untraceable
        unknown, first, counts = np.unique(used[~is_known], return_index=True, return_counts=True)
        rows = np.flatnonzero(~is_known)[first]
        for one, row, count in zip(unknown.tolist(), rows.tolist(), counts.tolist(), strict=True):
            if not is_traceable or str(one) in self.refused[section]:
                continue
            self._add(
                "annotation" if section == "images" else "category",
                f"annotation {objects.ids[row]}: {what} {one} is not in `{section}`"
                + (f", nor is that of {count - 1} more objects" if count > 1 else "")
                + f"; add the {what}, or leave out what is of it",
                self._name_of(int(objects.image_ids[row])),
            )
        return objects.rows(is_known)

    def _report_repeated_ids(self, objects: ObjectTable) -> None:
        order = np.argsort(objects.ids, kind="stable")
        ids = objects.ids[order]
        repeated = np.sort(order[1:][ids[1:] == ids[:-1]])
        if not len(repeated):
            return
        row = repeated[0]
        message = (
            f"annotations[{objects.numbers[row]}]: annotation id {objects.ids[row]} is given twice"
            + (f", and so are {len(repeated) - 1} more" if len(repeated) > 1 else "")
            + _OWN_IDS
        )
        image = self._name_of(int(objects.image_ids[row]))
        if _WITH_REPEATED_IDS in os.path.basename(self.path):
            self.notes.append(Problem(image, "duplicate", message, "warning"))
        else:
            self._add("duplicate", message, image)

    def _require_something(self, objects: ObjectTable, boxes: BoxWarnings) -> None:
        """Refuse a set with objects of which none can be learnt or found."""
        if not len(objects):
            return
        singles = ~objects.crowds
        if not singles.any():
            self._add(
                "annotation",
                f"nothing remains: all {len(objects)} objects are crowds (`iscrowd` 1); write 0 "
                "for those that are one object",
            )
        elif boxes.is_without_extent[singles].all():
            crowds = int(objects.crowds.sum())
            others = f"{crowds} of {len(objects)} objects are crowds, and " if crowds else ""
            self._add(
                "box",
                f"nothing remains: {others}{len(objects) - crowds} boxes have no extent in their "
                "images; write left, top, width and height in pixels",
            )
        elif all_normalized(objects.boxes_xywh_abs):
            self._add("box", "all boxes lie between 0 and 1; write them in pixels of the image")


def _spoken_id(value: Any) -> str:
    """An id as text, however it is typed."""
    number = whole_number(value)
    return str(value if number is None else number)


def _image_table(images: dict[int, tuple[str, int, int]]) -> ImageTable:
    rows = sorted(images.items())
    return ImageTable(
        ids=np.array([image_id for image_id, _ in rows], dtype=np.int64),
        file_names=[name for _, (name, _, _) in rows],
        heights=np.array([height for _, (_, height, _) in rows], dtype=np.int32),
        widths=np.array([width for _, (_, _, width) in rows], dtype=np.int32),
    )


def _class_notes(categories: dict[int, str], objects: ObjectTable) -> Iterator[Problem]:
    """Warn of categories without objects, and of several with one name."""
    used = set(np.unique(objects.category_ids).tolist())
    empty = [f"{key} {name!r}" for key, name in categories.items() if key not in used]
    if empty:
        yield Problem(
            "",
            "category",
            f"{len(empty)} of {len(categories)} categories have no object, yet are classes: "
            + listed(empty, shown=_SHOWN_NAMES),
            "warning",
        )
    for name, count in Counter(categories.values()).items():
        if count > 1:
            ids = ", ".join(str(key) for key, other in categories.items() if other == name)
            message = f"{count} categories are named {name!r}, and are {count} classes: {ids}"
            yield Problem("", "category", message, "warning")
