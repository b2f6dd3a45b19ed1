"""Images that cannot be read: the dump lists them, and DATASET.EXCLUDE commits the rest."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import detection_utils

from configs.imports import import_modules
from configs.loader import load_config
from configs.nodes import DatasetConfig
from dataset.subset import excluded_ids
from dataset.views.registry import OUR_STEPS
from stage1_dump.__main__ import main
from stage1_dump.dump import DumpJob
from stage1_dump.images import Failure
from stage1_dump.measure import measure
from stage1_dump.prepare import prepare
from stage1_dump.unreadable import UnreadableList
from storage import CacheReader, verify
from tests.stage1_dump.conftest import IMAGES, Configure
from tests.stage1_dump.helpers import dump, start_rank, store_bytes
from tests.stage1_dump.test_interruptions import commits, kill, short_lease, wait_for

__all__ = ["short_lease"]

FAILS = """
from dataclasses import dataclass

import numpy as np

from dataset.views import Step, register_step


@register_step
@dataclass(frozen=True)
class Fails(Step):
    name = "fails"

    def draw(self, seeds, sizes):
        return np.ones(len(seeds), dtype=int)

    def transforms(self, outcome, size):
        top, left = outcome
        return []
"""

Capture = pytest.CaptureFixture[str]
TWO_VIEWS = {"NUM": 2}
IDS = sorted(image_id for image_id, *_ in IMAGES)


def run(config: Path, *overrides: str, command: str = "run") -> int:
    return main([command, "--config-file", str(config), *overrides])


def listed(path: Path) -> list[int]:
    return [int(line.partition("#")[0]) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(images_folder: Path, tmp_path: Path) -> Path:
    """A copy of the images, to be spoilt."""
    return Path(shutil.copytree(images_folder, tmp_path / "data"))


@pytest.fixture
def config(configure: Configure, folder: Path) -> Path:
    return configure(VIEWS=TWO_VIEWS, DATASET={"FOLDER": str(folder)})


@pytest.fixture
def found(tmp_path: Path) -> Path:
    """Where a dump writes its list."""
    return tmp_path / "output/unreadable_images.txt"


def cut(folder: Path, image_id: int) -> Path:
    path = folder / f"images/{image_id:04d}.png"
    path.write_bytes(path.read_bytes()[:60])
    return path


def write_list(path: Path, ids: list[int]) -> str:
    path.write_text("".join(f"{image_id}\n" for image_id in ids))
    return str(path)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_step_that_fails_ends_the_dump_and_no_image_is_blamed(
    configure: Configure, found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Capture, workers: str,
) -> None:  # fmt: skip
    path = tmp_path / f"my_{tmp_path.name}.py"
    path.write_text(FAILS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("dataset.views.registry.STEPS", dict(OUR_STEPS))
    import_modules([path.stem])
    config = configure(VIEWS={**TWO_VIEWS, "STEPS": ["fails"]})
    assert run(config, "DATALOADER.NUM_WORKERS", workers) == 1
    *_, said = capsys.readouterr().err.splitlines()
    what = "TypeError: cannot unpack non-iterable int object"
    assert said == f"error: step fails: {what} ({path}:18)"
    assert not found.exists()


def check_rest(store: Path, reference: Path, excluded: set[int]) -> None:
    """Check that a cache is whole but for these images, and else has the reference's bytes."""
    report = verify(store, "full")
    assert report.ok and report.committed == report.shards
    reader, whole = CacheReader(store), CacheReader(reference)
    assert set(reader.manifest.excluded) == excluded
    assert reader.index.digest() == whole.index.digest()
    assert reader.manifest.cache_id == whole.manifest.cache_id
    for record in range(len(whole)):
        if int(whole.index.image_id[record]) in excluded:
            assert not reader.holds(record)
        else:
            assert reader.read_encoded([record]) == whole.read_encoded([record])


def test_the_list_that_a_dump_wrote_commits_the_rest_of_its_shards(
    config: Path, folder: Path, found: Path, reference: Path, capsys: Capture
) -> None:
    broken = cut(folder, 12)
    assert run(config) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == "their shards are missing; mend the images and run again"
    assert said[-1] == f"to leave them out: DATASET.EXCLUDE {found} (1 images)"
    (line,) = found.read_text().splitlines()
    assert line.startswith(f"12  # {broken}: cannot be read as an image (image file is truncated)")

    store, early = config.with_suffix(""), commits(config.with_suffix(""))
    before = {path: path.stat().st_mtime_ns for path in early}
    assert run(config, "DATASET.EXCLUDE", str(found)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 images are left out (DATASET.EXCLUDE)"
    assert {path: path.stat().st_mtime_ns for path in early} == before
    check_rest(store, reference, {12})

    assert run(config) == 1
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "leaves out 1 images that the config does not, the first has the id 12" in error
    assert "name them in DATASET.EXCLUDE too" in error


@pytest.mark.parametrize(
    "excluded",
    [
        {2},
        {3, 40, 30},
        {9, 12},  # two of three of their bucket in one of the views
        set(IDS) - {21},  # mostly shards without any record
    ],
    ids=str,
)
def test_the_other_records_are_those_of_a_dump_of_all_images(
    config: Path, folder: Path, reference: Path, tmp_path: Path, excluded: set[int]
) -> None:
    for image_id in excluded:
        (folder / f"images/{image_id:04d}.png").unlink()
    assert run(config, "DATASET.EXCLUDE", write_list(tmp_path / "out.txt", [*excluded])) == 0
    check_rest(config.with_suffix(""), reference, excluded)


def test_images_that_are_not_there_are_listed_before_anything_is_computed(
    config: Path, folder: Path, found: Path, reference: Path, capsys: Capture
) -> None:
    missing = folder / "images/0007.png"
    missing.unlink()
    assert run(config) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 10 images are missing" in error
    assert error.endswith(f"; to leave them out: DATASET.EXCLUDE {found} (1 images)")
    assert found.read_text() == f"7  # {missing}: missing\n"
    assert not config.with_suffix("").exists()
    assert run(config, "DATASET.EXCLUDE", str(found)) == 0
    check_rest(config.with_suffix(""), reference, {7})


def test_images_that_are_there_by_now_are_taken_off_the_list(
    config: Path, folder: Path, found: Path, images_folder: Path, reference: Path, capsys: Capture
) -> None:
    for image_id in IDS[1:]:
        (folder / f"images/{image_id:04d}.png").unlink()
    assert run(config) == 1
    assert "(9 images)" in capsys.readouterr().err and listed(found) == IDS[1:]
    shutil.copytree(images_folder, folder, dirs_exist_ok=True)
    (folder / "images/0007.png").unlink()
    assert run(config) == 1
    assert "(1 images)" in capsys.readouterr().err and listed(found) == [7]
    shutil.copytree(images_folder, folder, dirs_exist_ok=True)
    cut(folder, 12)
    assert run(config) == 1
    assert capsys.readouterr().out.endswith("(1 images)\n") and listed(found) == [12]
    shutil.copytree(images_folder, folder, dirs_exist_ok=True)
    assert run(config) == 0
    assert not found.exists()


def test_a_list_keeps_what_is_left_out_of_other_dumps(
    config: Path, folder: Path, found: Path
) -> None:
    found.parent.mkdir()
    write_list(found, [5, 30])
    cut(folder, 12)
    images = write_list(found.with_name("some.txt"), [5, 12, 33])
    assert run(config, "DATASET.EXCLUDE", str(found), "DATASET.IMAGE_LIST", images) == 1
    assert sorted(listed(found)) == [5, 12, 30]


def test_an_image_that_another_rank_could_read_is_not_offered(
    config: Path,
    folder: Path,
    images_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    def after_another_rank(job: DumpJob) -> list[Failure]:
        monkeypatch.setattr(DumpJob, "_failures", failures)
        shutil.copytree(images_folder, folder, dirs_exist_ok=True)
        other = start_rank(config)
        other.join(timeout=60)
        assert other.exitcode == 0
        return failures(job)

    failures = DumpJob._failures
    monkeypatch.setattr(DumpJob, "_failures", after_another_rank)
    cut(folder, 12)
    assert run(config) == 0
    assert "to leave them out" not in capsys.readouterr().out


def test_a_folder_without_any_image_makes_no_list(
    config: Path, folder: Path, found: Path, capsys: Capture
) -> None:
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    assert run(config) == 1
    assert "DATASET.EXCLUDE" not in capsys.readouterr().err and not found.exists()


def test_a_later_list_names_what_is_left_out_already(
    config: Path, folder: Path, found: Path, reference: Path, tmp_path: Path
) -> None:
    (folder / "images/0030.png").unlink()
    first = write_list(tmp_path / "first.txt", [30])
    cut(folder, 5)
    assert run(config, "DATASET.EXCLUDE", first) == 1
    assert sorted(listed(found)) == [5, 30]
    assert f"30  # DATASET.EXCLUDE {first}" in found.read_text().splitlines()
    assert run(config, "DATASET.EXCLUDE", str(found)) == 0
    check_rest(config.with_suffix(""), reference, {5, 30})


def test_a_list_holds_an_image_once_and_whatever_its_name_and_fault(
    config: Path, found: Path
) -> None:
    prepared = prepare(load_config(str(config)))
    found.parent.mkdir()
    found.write_text("7  # by hand, without a newline")
    UnreadableList(prepared).add({7: "again", 12: "a\nb\u2028\udcff # c"})
    UnreadableList(prepared).add({12: "again", 5: "d"})
    lines = found.read_bytes().splitlines()
    assert lines == [b"7  # by hand, without a newline", b"12  # a b \\udcff # c", b"5  # d"]
    ids = excluded_ids(prepared.sets, DatasetConfig(exclude=str(found)))
    assert ids.tolist() == [5, 7, 12]
    said = UnreadableList(prepared).remedy({2: "e", 5: "f"})
    assert said == f"to leave them out: DATASET.EXCLUDE {found} (2 images)"
    assert found.read_bytes().splitlines() == [b"2  # e", b"5  # f"]
    assert list(found.parent.iterdir()) == [found]


def test_a_list_that_cannot_be_written_stops_no_dump(
    config: Path, folder: Path, found: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    found.mkdir(parents=True)
    cut(folder, 12)
    assert run(config) == 1
    assert "could not list the unreadable images" in caplog.text
    assert capsys.readouterr().out.endswith("mend the images and run again\n")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_little_memory_for_an_image_ends_the_dump_and_lists_none(
    config: Path, found: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, num_workers: int
) -> None:
    def decode(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(detection_utils, "convert_PIL_to_numpy", decode)
    assert run(config, "DATALOADER.NUM_WORKERS", str(num_workers)) == 1
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "out of memory; use smaller batches or fewer workers" in error
    assert not found.exists()


@pytest.mark.usefixtures("short_lease")
def test_two_ranks_write_one_list_and_then_the_bytes_of_one(
    config: Path, configure: Configure, folder: Path, found: Path, reference: Path
) -> None:
    for image_id in (12, 33):
        cut(folder, image_id)
    found.parent.mkdir()
    found.write_text("7  # of an earlier run\n")
    for expected in (1, 0):
        ranks = [start_rank(config, rank, world_size=2) for rank in range(2)]
        for rank in ranks:
            rank.join(timeout=90)
        assert [rank.exitcode for rank in ranks] == [expected] * 2
        assert set(listed(found)) == {12, 33}
        data = {"FOLDER": str(folder), "EXCLUDE": str(found)}
        config = configure(VIEWS=TWO_VIEWS, DATASET=data)
    check_rest(config.with_suffix(""), reference, {12, 33})


@pytest.mark.usefixtures("short_lease")
def test_a_killed_dump_resumes_to_the_same_bytes(
    configure: Configure, tmp_path: Path, reference: Path
) -> None:
    left_out = {"EXCLUDE": write_list(tmp_path / "out.txt", [9, 12, 40])}
    whole = configure("whole", VIEWS=TWO_VIEWS, DATASET=left_out)
    dump(whole)
    config = configure(VIEWS=TWO_VIEWS, DATASET=left_out)
    child = start_rank(config)
    wait_for(lambda: commits(config.with_suffix("")), child)
    kill(child)
    dump(config)
    assert store_bytes(config.with_suffix("")) == store_bytes(whole.with_suffix(""))
    check_rest(config.with_suffix(""), reference, {9, 12, 40})


class TestAfterwards:
    """A cache of which some shards were committed before an image was left out, and some after."""

    @pytest.fixture
    def mixed(self, config: Path, folder: Path, found: Path) -> list[str]:
        """The arguments of a command on it: 12 is in no record, 5 in those of the first dump."""
        cut(folder, 12)
        assert run(config) == 1
        (folder / "images/0005.png").unlink()
        with found.open("a") as file:
            file.write("5")
        assert run(config, "DATASET.EXCLUDE", str(found)) == 0
        reader = CacheReader(config.with_suffix(""))
        held = {
            int(reader.index.image_id[record])
            for record in range(len(reader))
            if reader.holds(record)
        }
        assert 5 in held and 12 not in held
        return ["--config-file", str(config), "DATASET.EXCLUDE", str(found)]

    def test_plan_and_status_say_so(self, config: Path, mixed: list[str], capsys: Capture) -> None:
        assert main(["plan", *mixed]) == 0
        assert "left out: 2 images (DATASET.EXCLUDE)" in capsys.readouterr().out
        assert main(["plan", "--json", *mixed]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert (plan["excluded"], plan["images"], plan["done_records"]) == (2, 10, 20)
        assert main(["plan", *mixed[:2]]) == 0
        assert "warning: " in (said := capsys.readouterr().out)
        assert "leaves out 2 images that the config does not" in said
        assert main(["status", str(config.with_suffix(""))]) == 0
        assert "left out: 2 images (DATASET.EXCLUDE)" in capsys.readouterr().out

    def test_the_rate_is_measured_without_them(self, mixed: list[str]) -> None:
        cfg = load_config(mixed[1], mixed[2:])
        rate, _ = measure(prepare(cfg), cfg, num_batches=4)
        assert rate.records_per_sec > 0

    def test_check_compares_all_other_records(self, mixed: list[str], capsys: Capture) -> None:
        assert main(["check", "--json", "--sample", "20", *mixed]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["records"], report["excluded"]) == (16, 2)
        assert all(difference == 0 for difference, _ in report["largest"].values())
        assert main(["check", "--sample", "3", *mixed[:2]]) == 0
        assert "2 images are left out (DATASET.EXCLUDE)" in capsys.readouterr().out

    def test_evaluate_leaves_them_out(
        self, config: Path, folder: Path, reference: Path, mixed: list[str], capsys: Capture
    ) -> None:
        annotations = folder / "annotations/instances_train.json"
        command = ["evaluate", str(config.with_suffix("")), "--annotations", str(annotations)]
        assert main(command) == 0
        assert "8 of 10 annotated images, 2 are left out" in capsys.readouterr().out
        assert main([*command, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert (found["images"], found["excluded"]) == (8, 2)
        assert len(found["views"]) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("12\n999\n", r"names 1 images that are not in .*instances_train.json, .* the id 999"),
        ("0012.png\n", r":1: expected one image id, got '0012.png'"),
        ("", "names no image"),
        (None, "there is no file"),
        ("".join(f"{image_id}\n" for image_id in IDS), "names all 10 images; none is left"),
    ],
)
def test_a_list_that_cannot_be_right_is_refused_in_one_line(
    configure: Configure, tmp_path: Path, capsys: Capture, text: str | None, said: str
) -> None:
    path = tmp_path / "out.txt"
    if text is not None:
        path.write_text(text)
    assert run(configure(), "DATASET.EXCLUDE", str(path)) == 1
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert error == lines[-1] and error.startswith("error: DATASET.EXCLUDE: ")
    assert re.search(said, error)
