"""Views of fixed images have the checksums that they had with other versions of libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import versions
from configs.nodes import ViewsConfig
from dataset.views import Augmentation
from dataset.views.registry import OUR_STEPS


def test_every_step_of_ours_has_a_part() -> None:
    made = [Augmentation.of_config(ViewsConfig(**nodes)) for nodes in versions.CONFIGS.values()]
    assert {step.name for one in made for step in one.steps} == set(OUR_STEPS)


def test_the_pixels_are_those_of_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads(versions.EXPECTED.read_text())
    monkeypatch.setattr(versions, "VIEWS", 1)
    found = versions.checksums()
    assert len(found) == len(expected) / 4 and found.items() <= expected.items()


def test_a_view_that_comes_out_otherwise_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = {"a, view 0": "0badcafe", "b, view 0": "00000001"}
    monkeypatch.setattr(versions, "checksums", lambda: now)
    monkeypatch.setattr(versions, "EXPECTED", tmp_path / "views.json")
    versions.EXPECTED.write_text(json.dumps({**now, "b, view 0": "00000002"}))
    assert versions.main(["--json", str(tmp_path / "found.json")]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first == "b, view 0: expected 00000002, got 00000001"
    assert last.startswith("1 of 2 views differ: pillow ")
    assert json.loads((tmp_path / "found.json").read_text()) == now
