"""A cache that does not fit is refused before a model is built, by field and with both values."""

import hashlib
import json
import logging
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.transforms import TransformList
from detectron2.utils import comm
from PIL import Image

from configs.loader import load_config
from configs.wording import one_line
from dataset.views import RenderedView
from detectors import Setup, checkpoint, export_model, training_images
from detectors.command import register_data
from stage2_distill.cache_check import open_cache
from stage2_distill.data import build_data
from stage2_distill.methods import check_methods
from stage2_distill.pixels import PixelCheck
from stage2_distill.teacher import open_teacher
from stage2_distill.trainer import DistillTrainer
from storage import CacheReader, CorruptChunkError
from storage.errors import VersionError
from storage.layout import commit_key
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import teacher_and_view
from tests.tiny import random_detector


def check(path: Path, *overrides: str) -> CacheReader:
    cfg = load_config(str(path), overrides)
    register_data(cfg)
    setup = Setup(cfg)
    return open_cache(setup, training_images(setup))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A cache that a test may damage."""
    return Path(shutil.copytree(folder / "balanced", tmp_path / "cache"))


def arrays_read(reader: CacheReader) -> set[str]:
    return {array.name for array in next(iter(reader.arrays.values()))}


def test_training_reads_the_signals_that_its_losses_need(configure: Configure) -> None:
    reader = check(configure("balanced"))
    assert arrays_read(reader) == {"features", "scores", "deltas", "record"}
    without = {"FEATURE_WEIGHT": 0.0, "RELATION_WEIGHT": 0.0}
    reader = check(configure("balanced", GID=without))
    assert arrays_read(reader) == {"scores", "deltas", "record"}
    assert not any(name.startswith("features") for name in reader.read(0))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"VIEWS": {"SEED": 12}}, r"augmentation\.seed: cached 11, config 12"),
        (
            {"VIEWS": {"SCALES": [64]}},
            r"augmentation\.steps\[0\]\.parameters\.scales: cached \[64, 80\], config \[64\]",
        ),
        ({"VIEWS": {"NUM": 3}}, r"VIEWS\.NUM: cached 2, config 3"),
        ({"CACHE": {"PRESET": "exact"}}, r'preset: cached "balanced", config "exact"'),
        ({"CACHE": {"SCORES_KEPT": 9}}, r"signals\.scores\.codec\.parameters\.kept: .* config 9"),
    ],
)
def test_a_cache_of_another_config_is_refused(
    configure: Configure, nodes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(configure("balanced", **nodes))


def test_a_cache_of_other_weights_is_refused(
    configure: Configure, folder: Path, tmp_path: Path
) -> None:
    cfg = load_config(str(folder / "teacher.yaml"))
    export_model(random_detector(cfg, seed=2), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r'teacher\.tensors: cached "[0-9a-f]{64}", config'):
        check(configure(TEACHER={"WEIGHTS": str(tmp_path / "other.pth")}))


def test_a_cache_of_another_teacher_config_is_refused(
    configure: Configure, folder: Path, tmp_path: Path
) -> None:
    text = (folder / "teacher.yaml").read_text()
    (tmp_path / "other.yaml").write_text(
        text.replace("SCORE_THRESH_TEST: 0.001", "NMS_THRESH_TEST: 0.7")
    )
    with pytest.raises(ValueError, match=r"RETINANET\.NMS_THRESH_TEST: cached 0\.5, config 0\.7"):
        check(configure(TEACHER={"CONFIG": str(tmp_path / "other.yaml")}))


@pytest.mark.parametrize(
    ("weights", "level", "message"),
    [
        ("not/here.pth", "WARNING", "not/here.pth: there is no such file, .*; correct the path"),
        ("http://127.0.0.1:9/not/reached.pkl", "INFO", "reached.pkl was not fetched here"),
        ("detectron2://not/fetched.pkl", "INFO", "fetched.pkl was not fetched here"),
        ("", "INFO", "TEACHER.WEIGHTS is empty"),
    ],
)
def test_without_the_weights_at_hand_the_teacher_is_checked_by_its_config(
    configure: Configure,
    caplog: pytest.LogCaptureFixture,
    weights: str,
    level: str,
    message: str,
) -> None:
    with caplog.at_level(logging.INFO):
        check(configure(TEACHER={"WEIGHTS": weights}))
    (record,) = [one for one in caplog.records if one.name == "detectors.identity"]
    assert record.levelname == level
    assert "checked by its config alone" in record.getMessage()
    assert re.search(message, record.getMessage())


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "build_detector", None)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["teacher.pth", "plain.pth", "parallel.pth", "zoo.pkl"])
def test_the_weights_of_a_file_are_compared_without_building_a_model(
    configure: Configure, folder: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = torch.load(folder / "teacher.pth", weights_only=True)["model"]
    arrays = {k: v.numpy() for k, v in state.items()}
    arrays["anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)
    torch.save(state, tmp_path / "plain.pth")
    parallel = {f"module.{k}": v for k, v in state.items()}
    torch.save({"state_dict": parallel}, tmp_path / "parallel.pth")
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo"}))
    shutil.copy(folder / "teacher.pth", tmp_path / "teacher.pth")
    with caplog.at_level(logging.INFO):
        check(configure(TEACHER={"WEIGHTS": str(tmp_path / name)}))
    assert "config alone" not in caplog.text


@pytest.mark.usefixtures("no_model")
def test_weights_that_were_fetched_are_compared(
    configure: Configure, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    for name in ("there/t.pth", "detectron2/there/t.pth"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(folder / "teacher.pth", tmp_path / name)
    for url in ("https://not.reached/there/t.pth", "detectron2://there/t.pth"):
        check(configure(TEACHER={"WEIGHTS": url}))
    (tmp_path / "there/t.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        check(configure(TEACHER={"WEIGHTS": "https://not.reached/there/t.pth"}))


def test_weights_that_detectron2_converts_are_compared_as_it_loads_them(
    configure: Configure, folder: Path, tmp_path: Path
) -> None:
    state = torch.load(folder / "teacher.pth", weights_only=True)["model"]
    double = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    torch.save(double, tmp_path / "double.pth")
    check(configure(TEACHER={"WEIGHTS": str(tmp_path / "double.pth")}))


def test_the_main_rank_alone_reads_the_weights(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "never_read.pth").touch()
    path = configure(TEACHER={"WEIGHTS": str(tmp_path / "never_read.pth")})
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "all_gather", lambda mine: [("0" * 64, None), mine])
    with pytest.raises(ValueError, match=r'teacher\.tensors: cached "[0-9a-f]+", config "0{64}"'):
        check(path)
    monkeypatch.setattr(comm, "all_gather", lambda mine: [(None, "it failed there"), mine])
    with pytest.raises(ValueError, match="it failed there"):
        check(path)


def test_annotations_that_changed_beside_the_images_are_a_warning(
    configure: Configure, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check(configure())
    assert "not the file that the cache was dumped with" not in caplog.text
    data = Path(shutil.copytree(folder / "data", tmp_path / "data"))
    path = data / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"].pop()
    path.write_text(json.dumps(content))
    check(configure(DATASET={"FOLDER": str(data)}))
    assert f"{path} is not the file that the cache was dumped with" in caplog.text


def test_an_incomplete_cache_is_refused_with_the_command_that_finishes_it(
    configure: Configure, copied: Path
) -> None:
    sorted((copied / "commits").rglob("*.json"))[0].unlink()
    with pytest.raises(ValueError, match=r"incomplete: 1 shards .* python -m stage1_dump run"):
        check(configure("balanced", CACHE={"LOCATION": str(copied)}))


def test_a_view_that_is_not_in_use_may_be_incomplete(configure: Configure, copied: Path) -> None:
    reader = CacheReader(str(copied))
    shard, _ = reader.place_of(len(reader.index) - 1)
    (copied / commit_key(shard)).unlink()
    check(configure("balanced", CACHE={"LOCATION": str(copied)}, VIEWS={"NUM": 1}))
    with pytest.raises(ValueError, match="incomplete: 1 shards are missing"):
        check(configure("balanced", CACHE={"LOCATION": str(copied)}))


@pytest.mark.parametrize(
    ("location", "error", "message"),
    [
        ("", ValueError, r"CACHE\.LOCATION is empty"),
        ("no/such/cache", FileNotFoundError, "no/such/cache"),
    ],
)
def test_a_cache_that_is_not_there_is_refused(
    configure: Configure, location: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check(configure(CACHE={"LOCATION": location}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RETINANET": {"NUM_CLASSES": 3}}, "number of classes: student 3, teacher"),
        (
            {"ANCHOR_GENERATOR": {"ASPECT_RATIOS": [[1.0]]}},
            "anchors per position: student 1, teacher 3",
        ),
        (
            {"ANCHOR_GENERATOR": {"SIZES": [[9], [16], [32], [64], [128]]}},
            r"ANCHOR_GENERATOR\.SIZES: student \[\[9\]",
        ),
        (
            {"RETINANET": {"BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0)}},
            r"RETINANET\.BBOX_REG_WEIGHTS: student \(10\.0,",
        ),
    ],
)
def test_a_student_whose_anchors_are_not_the_teachers_is_refused(
    configure: Configure, change: dict[str, Any], message: str
) -> None:
    cfg = load_config(str(configure()))
    for node, values in change.items():
        for key, value in values.items():
            cfg.MODEL[node][key] = value
    register_data(cfg)
    with pytest.raises(ValueError, match=f"teacher and student do not match: .*{message}"):
        open_teacher(Setup(cfg), [])


def test_a_student_that_pads_to_less_than_its_teacher_is_refused(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = configure(DISTILL={"METHODS": ["pkd"]})
    cfg = load_config(str(path))
    setup = Setup(cfg)
    monkeypatch.setattr(
        type(setup.family), "size_divisibility", lambda _, of: 16 if of is cfg else 32
    )
    wanted = "the student pads images to multiples of 16 px, the teacher to multiples of 32 px"
    with pytest.raises(ValueError, match=wanted):
        check_methods(setup)


@pytest.mark.parametrize("source", ["cache", "live"])
def test_final_boxes_alone_fit_into_any_batch(configure: Configure, source: str) -> None:
    path = configure(DISTILL={"METHODS": ["pseudo"]}, TEACHER={"SOURCE": source})
    teacher, given, item = teacher_and_view(path, 0)
    # As of a student that pads to less.
    too_small = [(1, 1)] * len(teacher.pair.student_levels)
    found = given.outputs([item], too_small, torch.device("cpu"))
    assert found.detections.shape[0] == 1 and found.features == []


def test_levels_with_one_left_out_between_them_are_refused_where_gis_are_read(
    configure: Configure,
) -> None:
    gap = {"LEVELS": ["p3", "p5"]}
    with pytest.raises(ValueError, match=r"CACHE\.LEVELS: gid reads .* share p3, p5; "):
        check_methods(Setup(load_config(str(configure(CACHE=gap)))))
    none = {"FEATURE_WEIGHT": 0.0, "RELATION_WEIGHT": 0.0}
    check_methods(Setup(load_config(str(configure(CACHE=gap, GID=none)))))


def first_batch(path: Path) -> list[dict[str, Any]]:
    cfg = load_config(str(path))
    register_data(cfg)
    setup = Setup(cfg)
    images = training_images(setup)
    return next(iter(build_data(setup, images, open_cache(setup, images)).loader))


@pytest.fixture
def own_data(folder: Path, tmp_path: Path) -> Path:
    """Images that a test may change."""
    return Path(shutil.copytree(folder / "data", tmp_path / "data"))


def change_all_pixels(data: Path) -> None:
    for path in (data / "images").glob("train_*.png"):
        pixels = np.array(Image.open(path))
        pixels[0, 0, 0] ^= 255
        Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_changed_since_the_dump_stops_training_by_name(
    configure: Configure, own_data: Path, workers: int
) -> None:
    change_all_pixels(own_data)
    path = configure(DATASET={"FOLDER": str(own_data)}, DATALOADER={"NUM_WORKERS": workers})
    with pytest.raises(ValueError, match="the pixels differ") as caught:
        first_batch(path)
    assert one_line(caught.value).startswith(str(own_data / "images" / "train_"))
    remedy = "Bring back the image, dump to another CACHE.LOCATION, or set CACHE.PIXELS tolerate"
    assert remedy in one_line(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_a_pipe_stops_training_by_name(
    configure: Configure, own_data: Path, workers: int
) -> None:
    for path in sorted((own_data / "images").glob("train_*.png"))[1:]:
        path.unlink()
        os.mkfifo(path)
    path = configure(DATASET={"FOLDER": str(own_data)}, DATALOADER={"NUM_WORKERS": workers})
    with pytest.raises(ValueError, match="is no regular file") as caught:
        first_batch(path)
    assert one_line(caught.value).startswith(str(own_data / "images" / "train_"))


def test_a_tolerated_difference_of_pixels_is_logged(
    configure: Configure, own_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_all_pixels(own_data)
    first_batch(configure(DATASET={"FOLDER": str(own_data)}, CACHE={"PIXELS": "tolerate"}))
    assert caplog.text.count("the pixels differ") == 3
    assert "by 0 of 255 levels on average, at most 0" in caplog.text


def test_another_image_is_never_tolerated(configure: Configure, own_data: Path) -> None:
    for path in (own_data / "images").glob("train_*.png"):
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
    config = configure(DATASET={"FOLDER": str(own_data)}, CACHE={"PIXELS": "tolerate"})
    with pytest.raises(ValueError, match=r"of 255 levels on average, .* That is another image"):
        first_batch(config)


@pytest.mark.parametrize("shade", [100, 255])
def test_steps_of_the_user_s_are_named_where_pixels_differ(shade: int) -> None:
    def view(value: int) -> RenderedView:
        pixels = np.full((32, 32, 3), value, dtype=np.uint8)
        return RenderedView(pixels=pixels, transforms=TransformList([]), crc32c=value)

    record = {"pixels_crc32c": np.array(101), "pixels_sample": view(101).sample(16)}
    for steps in (("grey", "rnd"), ()):
        with pytest.raises(ValueError, match="the pixels differ") as caught:
            PixelCheck(strict=True, steps=steps).check(
                record, view(shade), file_name="1.png", view=0
            )
        assert ("A step of yours (grey, rnd) may have changed" in str(caught.value)) is bool(steps)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_chunk_stops_training_with_shard_and_repair_command(
    configure: Configure, copied: Path, workers: int
) -> None:
    for path in (copied / "buckets").rglob("features/c/*/*"):
        path.write_bytes(bytes(len(path.read_bytes())))
    path = configure(
        "balanced", CACHE={"LOCATION": str(copied)}, DATALOADER={"NUM_WORKERS": workers}
    )
    with pytest.raises(CorruptChunkError) as caught:
        first_batch(path)
    message = one_line(caught.value)
    assert f"python -m storage repair {copied}" in message
    assert "features" in message


def test_a_cache_of_a_newer_format_is_refused_with_both_versions(
    configure: Configure, copied: Path
) -> None:
    root = copied / "zarr.json"
    metadata = json.loads(root.read_bytes())
    metadata["attributes"]["gid"]["format"]["version"] = 7
    newer = json.dumps(metadata).encode()
    root.write_bytes(newer)
    (copied / "manifest.sha256").write_text(hashlib.sha256(newer).hexdigest() + "\n")
    with pytest.raises(VersionError, match=r"version 7.*\b2\b"):
        check(configure("balanced", CACHE={"LOCATION": str(copied)}))


@pytest.mark.parametrize(
    "nodes",
    [
        {"VIEWS": {"SEED": 12}},
        {"VIEWS": {"NUM": 3}},
        {"CACHE": {"PRESET": "exact"}},
        {"ANCHOR_GENERATOR": {"ASPECT_RATIOS": [[1.0]]}},
    ],
)
def test_no_model_is_built_for_a_cache_that_does_not_fit(
    configure: Configure, nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load_config(str(configure("balanced")))
    for node, values in nodes.items():
        target = cfg.MODEL[node] if node in cfg.MODEL else cfg[node]
        target.update(values)
    register_data(cfg)
    monkeypatch.setattr(DistillTrainer, "build_model", None)
    with pytest.raises(ValueError, match=r"cached .*, config |student .*, teacher "):
        DistillTrainer(cfg)
