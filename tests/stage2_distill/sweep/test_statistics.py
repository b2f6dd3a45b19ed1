"""Means, spreads and intervals, against published values."""

import math

import pytest

from stage2_distill.sweep.statistics import paired_difference, spread, student_t


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042)],
)
def test_student_t_is_that_of_the_tables(degrees: int, expected: float) -> None:
    assert student_t(degrees) == pytest.approx(expected, abs=5e-4)


def test_student_t_comes_close_to_the_normal_distribution() -> None:
    assert student_t(100_000) == pytest.approx(1.95996, abs=1e-4)


def test_a_difference_is_paired_by_seed() -> None:
    # The seeds differ widely, the rows by 1, 2 and 3.
    found = paired_difference({1: 11.0, 2: 22.0, 3: 33.0}, {3: 30.0, 1: 10.0, 2: 20.0})
    assert found is not None and found.half_width is not None
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


def test_one_seed_claims_no_interval() -> None:
    found = paired_difference({1: 3.0, 2: 9.0}, {1: 1.0})
    assert found is not None
    assert (found.mean, found.half_width, found.seeds) == (2.0, None, 1)
    assert spread({1: 3.0}) is None
    assert paired_difference({1: 3.0}, {2: 1.0}) is None
