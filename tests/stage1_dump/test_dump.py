"""A dump from end to end: what is in it, what it refuses, and how it fails."""

import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.loader import load_config
from detectors import load_model
from stage1_dump.__main__ import main
from stage1_dump.images import RecordImages
from stage1_dump.prepare import prepare
from stage1_dump.teacher import Teacher
from storage import CacheReader, CacheWriter, IdentityError, StoreFullError, verify
from tests.stage1_dump.conftest import IMAGES, Configure
from tests.stage1_dump.helpers import dump, store_bytes

TWO_VIEWS = {"NUM": 2}


def test_every_planned_record_is_there_also_of_images_without_objects(reference: Path) -> None:
    reader = CacheReader(reference)
    assert reader.missing() == []
    assert len(reader) == 2 * len(IMAGES)
    for image_id, *_ in IMAGES:
        for view in (0, 1):
            record = reader.read(reader.record_number(image_id, view))
            assert np.isfinite(record["features.values"]).all()


def test_a_dump_passes_the_deepest_check(reference: Path) -> None:
    report = verify(reference, level="deep")
    assert report.problems == ()
    assert report.committed == report.shards


def test_an_exact_record_is_the_live_teacher_bit_for_bit(
    reference: Path, configure: Configure
) -> None:
    prepared = prepare(load_config(str(configure(VIEWS=TWO_VIEWS))))
    model = load_model(prepared.teacher_cfg)
    reader = CacheReader(reference)
    index, shard_records = reader.index, reader.manifest.shard_records
    compared = 0
    for bucket in range(len(index.bucket_names)):
        records = np.flatnonzero(index.bucket == bucket)
        for number in np.unique(index.slot[records] // shard_records):
            shard = records[index.slot[records] // shard_records == number]
            for start_at in range(0, len(shard), 2):  # TEACHER.BATCH
                batch = shard[start_at : start_at + 2].tolist()
                compared += _compare_with_stock(batch, reader, model, prepared)
    assert compared == len(reader)


def _compare_with_stock(batch, reader, model, prepared) -> int:  # type: ignore[no-untyped-def]
    """Compare records with detectron2's own forward of the same images."""
    from dataset.views import plan_view, render
    from detectors import to_model_image

    inputs = []
    for record in batch:
        row = int(np.searchsorted(prepared.images.ids, reader.index.image_id[record]))
        path = Path(prepared.sets[0].image_root) / prepared.images.file_names[row]
        view = plan_view(
            prepared.setup.augmentation,
            image_id=int(reader.index.image_id[record]),
            view=int(reader.index.view[record]),
            height=int(prepared.images.heights[row]),
            width=int(prepared.images.widths[row]),
        )
        rendered = render(path, view)
        assert reader.read(record)["pixels_crc32c"] == rendered.crc32c
        assert np.array_equal(reader.read(record)["pixels_sample"], rendered.sample(16))
        inputs.append({"image": to_model_image(rendered.pixels, prepared.teacher_cfg)})
    with torch.no_grad():
        images = model.preprocess_image(inputs)
        pyramid = model.backbone(images.tensor)
        features = torch.cat([pyramid[n].flatten(2) for n in model.head_in_features], dim=2)
        found = [output["instances"] for output in model(inputs)]
    for position, record in enumerate(batch):
        stored = reader.read(record)
        assert np.array_equal(stored["features.values"], features[position].numpy())
        final, rows = found[position], stored["detections"]
        assert np.array_equal(rows[: len(final), :4], final.pred_boxes.tensor.numpy())
        assert np.array_equal(rows[: len(final), 4], final.scores.numpy())
        assert np.array_equal(rows[: len(final), 5], final.pred_classes.numpy())
        assert (rows[len(final) :, 4:] == -1).all() and (rows[len(final) :, :4] == 0).all()
        assert len(final) > 0 and (np.diff(rows[: len(final), 4]) <= 0).all()
    return len(batch)


def test_logits_and_deltas_are_those_before_the_sigmoid(
    reference: Path, configure: Configure
) -> None:
    prepared = prepare(load_config(str(configure(VIEWS=TWO_VIEWS))))
    model = load_model(prepared.teacher_cfg)
    reader = CacheReader(reference)
    stored = reader.read(0)
    geometry = reader.geometry_of(0)
    with torch.no_grad():
        offsets = geometry.level_offsets
        levels = [
            torch.from_numpy(stored["features.values"][:, a:b].copy()).view(1, -1, h, w)
            for (a, b), (h, w) in zip(pairwise(offsets), geometry.level_sizes, strict=True)
        ]
        logits, deltas = model.head(levels)
    expected = [_anchor_major(level, 3) for level in logits]
    assert np.allclose(stored["scores.values"], torch.cat(expected).numpy(), atol=1e-5)
    assert stored["scores.values"].max() < 0
    expected = [_anchor_major(level, 4) for level in deltas]
    assert np.allclose(stored["deltas.values"], torch.cat(expected).numpy(), atol=1e-5)


def _anchor_major(level: torch.Tensor, width: int) -> torch.Tensor:
    """(1, A * width, H, W) to (H * W * A, width)."""
    _, _, height, across = level.shape
    return level.view(-1, width, height, across).permute(2, 3, 0, 1).reshape(-1, width)


def test_growing_by_a_view_equals_dumping_all_at_once(
    reference: Path, configure: Configure
) -> None:
    dump(configure())
    config = configure(VIEWS=TWO_VIEWS)
    assert dump(config).records == len(IMAGES)
    assert store_bytes(config.with_suffix("")) == store_bytes(reference)


def test_a_finished_dump_has_nothing_left_to_do(configure: Configure) -> None:
    config = configure()
    dump(config)
    before = store_bytes(config.with_suffix(""))
    report = dump(config)
    assert (report.shards, report.records) == (0, 0)
    assert store_bytes(config.with_suffix("")) == before


@pytest.mark.parametrize(
    ("nodes", "field"),
    [
        ({"TEACHER": {"WEIGHTS": "other.pth"}}, "teacher.tensors: stored"),
        ({"TEACHER": {"BATCH": 3}}, "numerics.batch: stored 2, wanted 3"),
        ({"VIEWS": {"SEED": 12}}, "augmentation.seed: stored 11, wanted 12"),
        ({"DATASET": {"MAX_IMAGES": 9}}, "dataset.images: stored 10, wanted 9"),
        ({"CACHE": {"PRESET": "balanced"}}, 'preset: stored "exact", wanted "balanced"'),
    ],
)
def test_another_cache_is_refused_on_resume_by_its_fields(
    configure: Configure,
    teacher_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    nodes: dict[str, dict[str, object]],
    field: str,
) -> None:
    monkeypatch.chdir(teacher_folder)
    dump(configure(DATASET={"MAX_IMAGES": 10}))
    with pytest.raises(IdentityError) as refused:
        dump(configure(**nodes))
    assert field in str(refused.value)


def test_an_unreadable_image_stops_its_shard_alone(
    configure: Configure, images_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images_folder, folder)
    broken = folder / "images" / "0012.png"
    broken.write_bytes(broken.read_bytes()[:60])
    Image.new("I;16", (96, 64)).save(folder / "images" / "0005.png")
    # Stored as annotated, but to be shown on its side (EXIF orientation 6).
    turned = Image.open(folder / "images" / "0033.png")
    turned.getexif()[0x0112] = 6
    turned.save(folder / "images" / "0033.png", exif=turned.getexif())
    config = configure(DATASET={"FOLDER": str(folder)})
    assert main(["run", "--config-file", str(config)]) == 1
    said = capsys.readouterr()
    assert str(broken) in said.out and "image 12" in said.out
    assert "0005.png: holds 16 bits per channel" in said.out
    assert "0033.png: expected 62x92" in said.out and "found 92x62" in said.out
    assert "its size as stored, but its EXIF orientation 6 turns it" in said.out
    assert said.out.count("record ") == 3 == int(said.out.split(" views could not")[0].split()[-1])
    reader = CacheReader(config.with_suffix(""))
    missing = {
        int(image_id)
        for shard in reader.missing()
        for image_id in _images_of(reader, shard.bucket, shard.number)
    }
    assert {5, 12, 33} <= missing < {image_id for image_id, *_ in IMAGES}

    shutil.copytree(images_folder, folder, dirs_exist_ok=True)
    assert main(["run", "--config-file", str(config)]) == 0
    dump(configure("whole"))
    assert store_bytes(config.with_suffix("")) == store_bytes(tmp_path / "whole")


def _images_of(reader: CacheReader, bucket: str, number: int) -> np.ndarray:
    index = reader.index
    in_bucket = index.bucket == index.bucket_names.index(bucket)
    return index.image_id[in_bucket & (index.slot // reader.manifest.shard_records == number)]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_recorded_and_close(
    reference: Path, configure: Configure, precision: str
) -> None:
    config = configure(VIEWS=TWO_VIEWS, TEACHER={"PRECISION": precision})
    dump(config)
    half, full = CacheReader(config.with_suffix("")), CacheReader(reference)
    assert half.manifest.numerics["precision"] == precision
    name = "features.values"
    difference = np.abs(half.read(3)[name] - full.read(3)[name])
    assert 0 < difference.max() < 0.1 * np.abs(full.read(3)[name]).max()


def test_running_out_of_gpu_memory_names_the_setting(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Teacher, "run", run_out)
    assert main(["run", "--config-file", str(configure())]) == 1
    assert "lower TEACHER.BATCH" in capsys.readouterr().err


def test_a_full_disk_stops_the_dump_and_gives_its_claims_back(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise StoreFullError("no space left")

    monkeypatch.setattr(CacheWriter, "write", fail)
    config = configure()
    assert main(["run", "--config-file", str(config)]) == 1
    assert capsys.readouterr().err.strip().endswith("error: no space left")
    assert not list((config.with_suffix("") / "claims").rglob("*.json"))


def test_an_image_worker_that_dies_is_named_with_the_remedy(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RecordImages, "__getitem__", lambda self, record: os._exit(9))
    config = configure(DATALOADER={"NUM_WORKERS": 1})
    assert main(["run", "--config-file", str(config)]) == 1
    assert "lower DATALOADER.NUM_WORKERS" in capsys.readouterr().err
