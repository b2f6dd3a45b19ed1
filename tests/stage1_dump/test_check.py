"""The end-to-end check of a cache: the teacher, run again, has the last word."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stage1_dump.__main__ import main
from storage import CacheReader, CacheWriter
from tests.stage1_dump.conftest import IMAGES, Configure
from tests.stage1_dump.helpers import dump

Capture = pytest.CaptureFixture[str]
Arrays = dict[str, np.ndarray]
ALL = 2 * len(IMAGES)


def run_check(capsys: Capture, config: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    command = ["check", "--json", "--sample", str(ALL), "--config-file", str(config), *arguments]
    code = main(command)
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, result


@pytest.fixture
def config_of(configure: Configure, reference: Path, tmp_path: Path) -> Callable[..., Path]:
    """A config, with other nodes where given, of the reference cache."""

    def write(**nodes: dict[str, object]) -> Path:
        nodes = {"VIEWS": {"NUM": 2}, **nodes}
        nodes["CACHE"] = {"LOCATION": str(reference), **nodes.get("CACHE", {})}
        return configure("check", **nodes)

    return write


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine look unlike the one of the dump, so that values are compared."""
    monkeypatch.setattr("stage1_dump.numerics.device_kind", lambda device: "another machine")


def forge(source: Path, target: Path, change: Callable[[list[Arrays]], None]) -> None:
    """Write a store like `source`, intact by every digest, with the records of it changed."""
    reader = CacheReader(source)
    writer = CacheWriter(target, reader.manifest, reader.index)
    records = [dict(record) for record in reader.read_many(range(len(reader)))]
    change(records)
    for shard in writer.missing():
        rows = [records[number] for number in writer.records_of(shard)]
        fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        arrays = reader.manifest.arrays[shard.bucket]
        writer.write(shard, {array.name: array.join(fields) for array in arrays})


def same_bucket(reader: CacheReader) -> tuple[int, int]:
    """Two records of one bucket."""
    first, second, *_ = np.flatnonzero(reader.index.bucket == reader.index.bucket[0]).tolist()
    return first, second


def test_a_cache_agrees_with_its_teacher_bit_for_bit(
    config_of: Callable[..., Path], capsys: Capture
) -> None:
    code, report = run_check(capsys, config_of())
    assert code == 0 and report["agrees"]
    assert (report["records"], report["other_numerics"]) == (ALL, [])
    assert report["largest"].keys() == {
        "features.values", "scores.values", "deltas.values", "detections", "pixels_crc32c",
        "pixels_sample",
    }  # fmt: skip
    assert all(difference == 0 for difference, _ in report["largest"].values())


def test_the_sample_is_drawn_in_whole_batches_by_its_seed(
    config_of: Callable[..., Path], capsys: Capture
) -> None:
    config = str(config_of())
    assert main(["check", "--sample", "3", "--config-file", config]) == 0
    assert "bit for bit; they agree with the teacher" in capsys.readouterr().out
    drawn = set()
    for seed in range(4):
        assert main(["check", "--sample", "1", "--seed", str(seed), "--json",
                     "--config-file", config]) == 0  # fmt: skip
        drawn.add(json.loads(capsys.readouterr().out)["records"])
    assert drawn == {1, 2}  # batches of two, and what shards of three leave


def test_records_that_agree_are_not_blamed_for_another_config(
    config_of: Callable[..., Path], capsys: Capture
) -> None:
    config = str(config_of(CACHE={"PRESET": "balanced"}))
    assert main(["check", "--sample", "1", "--config-file", config]) == 1
    out = capsys.readouterr().out
    assert "not of this config: preset: " in out
    assert "they agree with the teacher, but the cache IS NOT of this config" in out


def test_other_weights_are_found_in_record_and_field(
    config_of: Callable[..., Path], teacher_folder: Path, capsys: Capture
) -> None:
    weights = {"TEACHER": {"WEIGHTS": str(teacher_folder / "other.pth")}}
    code, report = run_check(capsys, config_of(**weights))
    assert code == 1
    assert any(line.startswith("teacher.tensors") for line in report["identity"])
    wrong = {(one["image_id"], one["view"]) for one in report["mismatches"]}
    assert wrong == {(image_id, view) for image_id, *_ in IMAGES for view in (0, 1)}
    worst = next(one for one in report["mismatches"] if one["field"] == "features.values")
    assert worst["difference"] > 0 == worst["tolerance"]


@pytest.mark.usefixtures("other_machine")
def test_other_weights_are_found_by_value_too(
    config_of: Callable[..., Path], teacher_folder: Path, capsys: Capture
) -> None:
    weights = {"TEACHER": {"WEIGHTS": str(teacher_folder / "other.pth")}}
    code, report = run_check(capsys, config_of(**weights))
    assert code == 1 and "another machine" in report["other_numerics"][0]
    wrong = {one["record"] for one in report["mismatches"] if one["field"] == "features"}
    assert len(wrong) == ALL
    assert all(one["difference"] > one["tolerance"] for one in report["mismatches"])


def test_other_images_are_found(
    config_of: Callable[..., Path], images_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images_folder, folder)
    path = folder / "images" / "0012.png"
    pixels = np.array(Image.open(path))
    pixels[:40] = 255 - pixels[:40]
    Image.fromarray(pixels).save(path)
    (folder / "images" / "0005.png").write_bytes(b"none")
    code, report = run_check(capsys, config_of(DATASET={"FOLDER": str(folder)}))
    assert code == 1
    wrong = {one["image_id"] for one in report["mismatches"]}
    assert 12 in wrong
    assert {"pixels_crc32c", "features.values"} <= {
        one["field"] for one in report["mismatches"] if one["image_id"] == 12
    }
    # A record shares nothing with its batch's others but the arithmetic.
    assert {one["field"] for one in report["mismatches"] if one["image_id"] != 12} == set()
    assert {one["image_id"] for one in report["failures"]} == {5}
    assert main(["check", "--config-file", str(config_of(DATASET={"FOLDER": str(folder)}))]) == 1
    said = capsys.readouterr().out
    assert "(image 12, view 0): pixels_crc32c differs" in said and "0005.png" in said


@pytest.mark.parametrize("machine", ["same", "other"])
def test_two_swapped_records_are_found(
    configure: Configure,
    reference: Path,
    tmp_path: Path,
    capsys: Capture,
    machine: str,
    request: pytest.FixtureRequest,
) -> None:
    first, second = same_bucket(CacheReader(reference))

    def swap(records: list[Arrays]) -> None:
        records[first], records[second] = records[second], records[first]
        # Whoever swaps two records may well keep the sums of the pixels.
        sums = [records[number]["pixels_crc32c"] for number in (second, first)]
        records[first]["pixels_crc32c"], records[second]["pixels_crc32c"] = sums

    forge(reference, tmp_path / "check", swap)
    if machine == "other":
        request.getfixturevalue("other_machine")
    code, report = run_check(capsys, configure("check", VIEWS={"NUM": 2}))
    assert code == 1
    found = {(one["record"], one["field"]) for one in report["mismatches"]}
    assert {record for record, _ in found} == {first, second}
    features = "features.values" if machine == "same" else "features"
    assert {(first, features), (second, features)} <= found


def test_tolerated_pixels_may_differ_a_little(
    configure: Configure, reference: Path, tmp_path: Path, capsys: Capture
) -> None:
    def change(records: list[Arrays]) -> None:
        for number, levels in ((2, 9), (5, 90)):
            one = records[number]
            one["pixels_crc32c"] = one["pixels_crc32c"] ^ np.uint32(1)
            one["pixels_sample"] = one["pixels_sample"] ^ np.uint8(levels)

    forge(reference, tmp_path / "check", change)
    both = {"pixels_crc32c", "pixels_sample"}
    for pixels, expected in (
        ("strict", {(record, field) for record in (2, 5) for field in both}),
        ("tolerate", {(5, field) for field in both}),
    ):
        config = configure("check", VIEWS={"NUM": 2}, CACHE={"PIXELS": pixels})
        code, report = run_check(capsys, config)
        assert code == 1
        found = {(one["record"], one["field"]) for one in report["mismatches"]}
        assert found == expected
        assert report["tolerated"] == (pixels == "tolerate")


@pytest.mark.parametrize(
    "field",
    [
        "features.values", "scores.values", "deltas.values", "detections", "pixels_crc32c",
        "pixels_sample",
    ],
)  # fmt: skip
def test_the_last_bit_of_one_element_is_enough(
    configure: Configure, reference: Path, tmp_path: Path, capsys: Capture, field: str
) -> None:
    def change(records: list[Arrays]) -> None:
        changed = records[5][field].copy()
        changed.reshape(-1).view(np.uint8)[0] ^= 1
        records[5][field] = changed

    forge(reference, tmp_path / "check", change)
    code, report = run_check(capsys, configure("check", VIEWS={"NUM": 2}))
    assert code == 1
    (found,) = report["mismatches"]
    assert (found["record"], found["field"]) == (5, field)


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("preset", ["exact", "balanced"])
def test_another_machine_may_round_otherwise(
    configure: Configure, capsys: Capture, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    config = configure(CACHE={"PRESET": preset})
    with torch.backends.mkldnn.flags(enabled=False):  # other convolutions
        dump(config)
    assert run_check(capsys, config)[0] == 1
    monkeypatch.setattr("stage1_dump.numerics.device_kind", lambda device: "another machine")
    code, report = run_check(capsys, config)
    assert code == 0 and report["records"] == len(IMAGES)
    difference, tolerance = report["largest"]["scores"]
    assert 0 < difference < tolerance


def test_a_cache_of_which_nothing_is_committed_cannot_be_checked(
    config_of: Callable[..., Path], reference: Path, tmp_path: Path, capsys: Capture
) -> None:
    reader = CacheReader(reference)
    CacheWriter(tmp_path / "empty", reader.manifest, reader.index)
    config = config_of(CACHE={"LOCATION": str(tmp_path / "empty")})
    assert main(["check", "--config-file", str(config)]) == 1
    assert "no committed record" in capsys.readouterr().err
