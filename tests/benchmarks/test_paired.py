"""Means of paired differences and their intervals."""

import pytest

from benchmarks.paired import Paired


def test_the_interval_is_that_of_student_s_t() -> None:
    found = Paired.of({1: 3.0, 2: 5.0, 3: 7.0}, {3: 4.0, 2: 3.0, 1: 2.0})
    assert found.by_seed == (1.0, 2.0, 3.0)
    assert found.mean == 2.0
    # t of 2 degrees of freedom at 97.5% is 4.303, the standard error 1 / sqrt(3).
    assert found.half_width == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert found.interval == pytest.approx((-0.484, 4.484), abs=1e-3)
    assert str(found) == "+2.00, 95% interval -0.48 to +4.48"


def test_one_seed_has_a_mean_alone() -> None:
    found = Paired.of({1: 3.0}, {1: 1.0})
    assert (found.mean, found.half_width, found.interval) == (2.0, None, None)


def test_many_seeds_come_near_the_normal_distribution() -> None:
    found = Paired(by_seed=tuple(float(i % 2) for i in range(100)))
    assert found.half_width == pytest.approx(1.984 * 0.5025 / 10, rel=1e-3)
