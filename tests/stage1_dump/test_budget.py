"""The most views that fit a budget: as the plan of each number of views says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.loader import load_config
from detectors.command import register_data
from stage1_dump.__main__ import main, parse
from stage1_dump.budget import _most
from stage1_dump.estimate import Estimate, estimate
from stage1_dump.prepare import Prepared, prepare
from stage1_dump.sizes import Sample
from tests.stage1_dump.conftest import Configure

Capture = pytest.CaptureFixture[str]
PRESETS = ("balanced", "compact", "exact", "exact float16")


def prepared(config: Path, *overrides: str) -> Prepared:
    cfg = load_config(str(config), overrides)
    register_data(cfg)
    return prepare(cfg)


def announced(config: Path, *overrides: str, budget: int | None = None) -> Estimate:
    return estimate(prepared(config, *overrides), budget_bytes=budget)


def sizes_of(config: Path, views: int) -> dict[str, int]:
    presets = announced(config, "VIEWS.NUM", str(views)).presets
    return {title: preset.expected_bytes for title, preset in presets.items()}


def plan(config: Path, *options: str, capture: Capture) -> str:
    assert main(["plan", *options, "--config-file", str(config)]) == 0
    return capture.readouterr().out


@pytest.mark.parametrize("planned", [1, 5])
def test_the_most_views_fit_and_one_more_does_not(configure: Configure, planned: int) -> None:
    config = configure(VIEWS={"NUM": planned})
    budget = sizes_of(config, 3)["exact"]
    for given, most in ((budget, 3), (budget - 1, 2)):
        found = announced(config, budget=given).budget
        assert found is not None and tuple(found.fits) == PRESETS and found.bytes == given
        assert found.fits["exact"].views == most
        for title, fit in found.fits.items():
            assert fit.bytes == sizes_of(config, fit.views)[title] <= given
            assert given < sizes_of(config, fit.views + 1)[title]
            assert not fit.more


@pytest.mark.parametrize("views", [1, 4])
def test_a_sample_tells_what_fewer_and_more_views_than_its_own_take(
    configure: Configure, views: int
) -> None:
    config = configure(VIEWS={"NUM": 2, "SCALES": [640, 704], "MAX_SIZE": 1200})
    found = prepared(config)
    typical = estimate(found).presets["compact"].typical_array_bytes
    sample = Sample(
        source="records of half the typical size",
        geometries=found.geometries,
        records=np.bincount(found.index.bucket),
        array_bytes={name: size // 2 for name, size in typical.items()},
    )
    whole = announced(config, "VIEWS.NUM", str(views)).presets["compact"]
    records = whole.expected_bytes - whole.metadata_bytes
    half = records - sum(whole.typical_array_bytes.values()) // 2
    assert half < 0.7 * records
    given = whole.metadata_bytes + half + half // views // 4
    budget = estimate(found, samples={"compact": sample}, budget_bytes=given).budget
    assert budget is not None and budget.fits["compact"].views == views
    taken = budget.fits["compact"].bytes - whole.metadata_bytes
    assert taken == pytest.approx(half, rel=0.05)


def test_text_and_json_say_what_fits(configure: Configure, capsys: Capture) -> None:
    config = configure()
    one = sizes_of(config, 1)
    budget = one["exact"] // 1000 - 1  # kB: too few for one preset, enough for others
    said: dict[str, Any] = json.loads(
        plan(config, "--budget", f"{budget}kB", "--json", capture=capsys)
    )["budget"]
    assert said["bytes"] == budget * 1000
    assert said["fits"]["exact"] == {
        "views": 0, "bytes": one["exact"], "about": "", "more": False,
    }  # fmt: skip
    text = plan(config, "--budget", f"{budget}kB", capture=capsys)
    _, _, listed = text.partition(", the most views that fit:\n")
    lines = listed.splitlines()[: len(PRESETS)]
    assert [line.partition(":")[0].strip() for line in lines] == list(PRESETS)
    for line, (title, fit) in zip(lines, said["fits"].items(), strict=True):
        start = f"  {title}: {fit['views']} view" if fit["views"] else f"  {title}: none, 1 view "
        assert line.startswith(start)
    assert ": about " not in lines[0] and ", about " in lines[1]
    assert "budget" not in plan(config, capture=capsys)


def test_one_line_says_that_nothing_fits(configure: Configure, capsys: Capture) -> None:
    config = configure()
    text = plan(config, "--budget", "1kB", capture=capsys)
    (line,) = [line for line in text.splitlines() if line.startswith("budget")]
    least = min((size, title) for title, size in sizes_of(config, 1).items())[1]
    assert line.startswith(f"budget 1.0 kB: no preset fits; the smallest, {least}, takes ")
    assert text.rstrip().endswith(line)  # and no list


def test_the_search_ends_at_a_number_and_says_so(
    configure: Configure, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stage1_dump.budget._MOST_VIEWS", 4)
    text = plan(configure(), "--budget", "1PB", capture=capsys)
    assert text.count(" (or more: no more were tried)") == len(PRESETS)
    assert "  exact: 4 views, " in text


# At which the records take more than the rest of a cache.
LARGE_VIEWS = {"SCALES": [320], "MAX_SIZE": 480}
PARTS = {
    "features alone": ("CACHE.SIGNALS", "('features',)"),
    "scores and deltas alone": ("CACHE.SIGNALS", "('scores', 'deltas')"),
    "without p3": ("CACHE.LEVELS", "('p4', 'p5', 'p6', 'p7')"),
}


@pytest.mark.parametrize("shards", [{}, {"SHARD_RECORDS": 0, "SHARD_BYTES": 400_000}])
@pytest.mark.parametrize("part", list(PARTS))
def test_a_part_of_the_records_fits_as_its_own_plan_says(
    configure: Configure, part: str, shards: dict[str, object]
) -> None:
    config = configure(VIEWS=LARGE_VIEWS, CACHE=shards)
    own = announced(config, *PARTS[part], "VIEWS.NUM", "2").presets["exact"].expected_bytes
    for given, views in ((own, 2), (own - 1, 1)):
        found = announced(config, budget=given).budget
        assert found is not None and found.fits["exact"].views < 2
        # Of others as many or more fit, or they are not listed.
        fit = found.parts.get(f"exact, {part}", found.fits["exact"])
        assert fit.views == views and fit.bytes <= given
        assert fit.bytes == own or views == 1


@pytest.mark.parametrize(
    ("budget", "overrides", "listed"),
    [
        ("1PB", (), []),  # as many fit of the whole as are tried
        ("4.1MB", (), list(PARTS)),
        ("1.7MB", ("CACHE.PRESET", "compact"), list(PARTS)[::2]),  # no preset fits
        ("2.1MB", PARTS["without p3"], [*list(PARTS)[:2], "without p4"]),
        ("2.1MB", PARTS["features alone"], ["without p3"]),
        ("2.1MB", ("CACHE.LEVELS", "('p5',)", *PARTS["features alone"]), []),
    ],
)
def test_parts_of_which_more_views_fit_are_listed(
    configure: Configure,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    budget: str,
    overrides: tuple[str, ...],
    listed: list[str],
) -> None:
    monkeypatch.setattr("stage1_dump.budget._MOST_VIEWS", 4)
    config = configure(VIEWS=LARGE_VIEWS)
    assert main(["plan", "--budget", budget, "--config-file", str(config), *overrides]) == 0
    _, _, said = capsys.readouterr().out.partition(", the most views that fit:\n")
    lines = said.splitlines()[len(PRESETS) :]
    title = "compact" if "compact" in overrides else "exact"
    assert [line.partition(": ")[0] for line in lines] == [f"  {title}, {one}" for one in listed]
    assert all(re.search(r": \d views?, ", line) for line in lines)


@pytest.mark.parametrize(
    "size",
    [
        lambda number: 10 * number,
        lambda number: 500 + number,  # hardly grows: what a number takes guesses badly
        lambda number: 10 * number + number % 3,
    ],
)
@pytest.mark.parametrize("guess", [1, 7, 60])
def test_the_search_finds_the_largest_number_that_fits(
    size: Callable[[int], int], guess: int
) -> None:
    for budget in range(1, 700, 3):
        largest = max((number for number in range(1, 61) if size(number) <= budget), default=0)
        assert _most(size, budget, guess, 60) == largest


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500GB", 500 * 10**9), ("2TB", 2 * 10**12), ("1.5TiB", 3 * 2**39), ("1.5 tb", 15 * 10**11),
        ("7B", 7), ("64kiB", 2**16), ("1PB", 10**15),
    ],
)  # fmt: skip
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse(["plan", "--budget", text, "--config-file", "x.yaml"]).budget == size


@pytest.mark.parametrize(
    "text", ["2", "TB", "2T", "0GB", "0.1B", "-2TB", "1e3GB", "2XB", "2iB", "two TB", "", "9" * 400]
)
def test_what_is_no_size_is_refused_in_one_line(text: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        parse(["plan", f"--budget={text}", "--config-file", "x.yaml"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"--budget: expected a size such as 500GB or 1.5TiB, got {text}")
