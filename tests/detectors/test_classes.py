"""A student's classes are found among the teacher's by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch

from detectors.classes import ClassMap

TEACHER = ("ant", "bee", "cat", "dog")


def map_of(student: Sequence[str], teacher: Sequence[str] = TEACHER) -> ClassMap:
    return ClassMap.of_names(
        student, teacher, key="TEACHER.CLASSES", data="folder_train", num_classes=4
    )


def test_classes_are_matched_by_name_in_the_student_s_order() -> None:
    found = map_of(("dog", "bee"))
    assert found.columns == (3, 1)
    assert str(found) == "2 of the teacher's 4 classes; dropped: ant, cat"


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        (("dog", "elk", "Bee"), TEACHER, "TEACHER.CLASSES has no 'elk', 'Bee', which folder_train"),
        (("dog",), ("ant", "bee", "bee", "dog"), "TEACHER.CLASSES names 'bee' more than once"),
        (("dog",), ("ant", "dog"), "TEACHER.CLASSES names 2 classes, but the teacher has 4;"),
    ],
    ids=["a class that the teacher lacks", "a name given twice", "not as many as classes"],
)
def test_names_that_do_not_fit_are_refused_in_one_line(
    student: Sequence[str], teacher: Sequence[str], said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        map_of(student, teacher)
    assert "\n" not in str(caught.value)


def test_scores_keep_the_student_s_columns_and_the_background() -> None:
    classes = map_of(("dog", "bee"))
    values = torch.arange(10.0).view(2, 5)
    assert classes.scores(values[:, :4]).tolist() == [[3, 1], [8, 6]]
    assert classes.scores(values).tolist() == [[3, 1, 4], [8, 6, 9]]
    objectness = values[:, :1]
    assert torch.equal(classes.scores(objectness), objectness)


def test_detections_of_other_classes_are_no_longer_used() -> None:
    rows = torch.tensor(
        [[1.0, 2, 3, 4, 0.9, 3], [1, 2, 3, 4, 0.8, 0], [1, 2, 3, 4, 0.7, 1], [0, 0, 0, 0, -1, -1]]
    )
    unused = [0, 0, 0, 0, -1, -1]
    wanted = torch.tensor(
        [[1.0, 2, 3, 4, 0.9, 0], unused, [1, 2, 3, 4, 0.7, 1], unused], dtype=torch.float32
    )
    assert torch.equal(map_of(("dog", "bee")).detections(rows), wanted)


@pytest.mark.parametrize(
    ("total", "values", "wanted"),
    [
        (8, 1, [3, 1, 7, 5]),
        (8, 2, [6, 7, 2, 3]),
        (5, 1, [3, 1, 4]),
        (6, 4, list(range(6))),
        # As many rows as classes and a background, but they are the sides of a box.
        (5, 4, list(range(5))),
    ],
    ids=["two anchors", "two values of each class", "a background", "no classes", "no background"],
)
def test_rows_of_a_layer_are_those_of_the_student_s_classes(
    total: int, values: int, wanted: list[int]
) -> None:
    weights = torch.arange(total)[:, None].expand(-1, 3)
    found = map_of(("dog", "bee")).rows(weights, values)
    assert found[:, 0].tolist() == wanted and found.shape[1] == 3
