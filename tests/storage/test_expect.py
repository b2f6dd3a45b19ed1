"""Verify against a plan: the store is checked for what was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from storage import FormatError, Report, plan_to_json, verify
from tests.storage.cases import make_index, make_manifest


def kinds(report: Report) -> list[str]:
    return [problem.kind for problem in report.problems]


class TestExpect:
    def plan(self, num_views: int, **changes: Any) -> dict[str, Any]:
        index = make_index(num_views=num_views)
        return json.loads(json.dumps(plan_to_json(make_manifest(index, **changes), index)))

    def test_the_plan_of_the_store_or_a_part_of_it(self, finished: Path) -> None:
        assert verify(finished, "quick", self.plan(2)).ok
        assert verify(finished, "quick", self.plan(1)).ok

    def test_shards_that_the_store_does_not_plan(self, finished: Path) -> None:
        report = verify(finished, "quick", self.plan(3))
        assert kinds(report) == ["missing"] * 3
        assert "run the dump with the config of the plan" in report.problems[0].message

    @pytest.mark.parametrize(
        ("section", "name", "stored"),
        [
            ("teacher", "tensors", '"' + "ab" * 32 + '"'),
            ("dataset", "sha256", '"' + "cd" * 32 + '"'),
            ("augmentation", "scales", "[30]"),
            ("numerics", "precision", '"float32"'),
        ],
    )
    def test_another_identity_names_fields_and_values(
        self, finished: Path, section: str, name: str, stored: str
    ) -> None:
        other = {**getattr(make_manifest(make_index()), section), name: "other"}
        (problem,) = verify(finished, "quick", self.plan(2, **{section: other})).problems
        assert (problem.kind, problem.where) == ("unexpected", f"{section}.{name}")
        said = f'{finished}: {section}.{name}: stored {stored}, wanted "other";'
        assert said in str(problem)

    def test_other_records(self, finished: Path) -> None:
        plan = self.plan(2)
        plan["shards"][0]["sha256"] = "0" * 64
        assert kinds(verify(finished, "quick", plan)) == ["unexpected"]

    def test_what_is_no_plan(self, finished: Path) -> None:
        with pytest.raises(FormatError, match="plan: not a teacher cache"):
            verify(finished, "quick", {"shards": []})
