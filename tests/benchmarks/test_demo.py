"""The demo in small: every real command, on a few images, for a few iterations."""

import re
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from benchmarks.demo import run
from benchmarks.pipeline import Pipeline, StepError
from benchmarks.report import Report, write_report
from dataset.synthetic import SyntheticConfig, write_synthetic
from storage import CacheReader

QUICK = {
    "SOLVER.MAX_ITER": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "VIEWS.NUM": 1,
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    """Of a run into a folder of the working directory, as `make demo` does it."""
    folder = tmp_path_factory.mktemp("demo")
    # A name that would break a page that does not escape it.
    data = folder / "<b>data"
    write_synthetic(data, SyntheticConfig(train=6, val=2, size=64), workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield run(Path("run"), data, seed=1, overrides=QUICK)


def test_the_whole_pipeline_runs(report: Report) -> None:
    assert set(report.metrics) == {"teacher", "baseline", "distilled"}
    assert len(CacheReader(report.pipeline.cache)) == 6
    assert CacheReader(report.pipeline.cache).missing() == []
    assert len(report.pictures) > 0
    assert {
        "teacher",
        "dump cache",
        "verify",
        "baseline",
        "distilled",
    } <= report.pipeline.seconds.keys()


def test_the_report_is_one_file_that_needs_no_other(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(report, path)
    page = path.read_text()
    assert page.count("data:image/png;base64,") == len(report.pictures)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<b>data" not in page
    assert "&lt;b&gt;data" in page
    for name in ("features", "scores", "deltas", "record", "distilled"):
        assert f"<td>{name}</td>" in page


def test_the_report_compares_teacher_baseline_and_distilled(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    of_classes = {"teacher": 30.0, "baseline": 10.0, "distilled": 20.0}
    metrics = {
        name: {**values, "AP-star": of_classes[name]} for name, values in report.metrics.items()
    }
    write_report(replace(report, metrics=metrics), path)
    page = path.read_text()
    assert "<tr><td>star</td><td>30.00</td><td>10.00</td><td>20.00</td></tr>" in page
    (ap,) = re.findall('<svg role="img" aria-label="folder_val/AP over iterations[^"]*"', page)
    assert re.findall(r"teacher|baseline|distilled", ap) == ["teacher", "baseline", "distilled"]
    assert "<figcaption>loss_cls</figcaption>" in page and "loss_gid_feature" in page
    assert page.count("boxes of ground truth, teacher, baseline, student, and GIs") == 6
    sizes = {name: one.parameters for name, one in report.models.items()}
    assert sizes["teacher"] > sizes["student"]
    assert f"<td>student</td><td>{sizes['student'] / 1e6:.2f}</td>" in page
    assert escape(report.machine) in page


def test_a_step_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    job = Pipeline(folder=tmp_path, data=tmp_path / "nothing")
    with pytest.raises(StepError, match=r"step 'verify' failed with exit code 1 .*\n.*error: "):
        job.verify()
