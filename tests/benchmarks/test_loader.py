"""What an image costs a data worker, in a short form: it runs, and its parts make up the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import loader


@pytest.mark.parametrize("preset", loader.LIMITS_MS)
def test_the_parts_of_an_image_s_cost_add_up(
    tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "IMAGES", loader.SHARD_RECORDS)
    (row,) = loader.measure(tmp_path, [preset], rounds=1)
    assert row.value > 0 and row.limit == loader.LIMITS_MS[preset]
    lines = capsys.readouterr().out.splitlines()
    *parts, whole = [float(line.split()[-2]) for line in lines if line.endswith(" ms")]
    assert len(parts) == 4 and sum(parts) == pytest.approx(whole, abs=0.05)
