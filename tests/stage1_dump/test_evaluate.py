"""AP from a cache alone: the teacher's own, as stock detectron2 computes it."""

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor

from configs.imports import import_modules
from configs.loader import load_config, teacher_config
from configs.nodes import ViewsConfig
from dataset.views import Augmentation, plan_view
from dataset.views.registry import OUR_STEPS
from detectors import load_model
from detectors.command import register_data
from detectors.evaluate import evaluate
from stage1_dump.__main__ import main
from stage1_dump.evaluate import evaluate_cache, image_detections
from storage import CacheReader
from tests.stage1_dump.conftest import Configure, write_dump_config
from tests.stage1_dump.helpers import dump
from tests.tiny import DETECTOR, write_config

# Classes are numbered by ascending id, whatever the order and the gaps.
CATEGORY_IDS = (4, 7, 90)
# A step that turns views upside down.
UPSIDE = """
from dataclasses import dataclass

from detectron2.data.transforms import VFlipTransform

from dataset.views import Step, register_step


@register_step
@dataclass(frozen=True)
class Upside(Step):
    name = "upside"
    draws = (1000,)

    def draw(self, seeds, sizes):
        return self.uniform(seeds) < 0.5

    def transforms(self, outcome, size):
        return [VFlipTransform(size[0])] if outcome else []
"""
AT_TEST_SCALE = {"SCALES": [64], "MAX_SIZE": 96, "FLIP": 0.0, "NUM": 1}


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Path:
    """The teacher's config, with a test scale."""
    content = DETECTOR | {"INPUT": {"MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 96}}
    path = teacher_folder / "at_test_scale.yaml"
    write_config(path, content)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, images_folder: Path, teacher: Path) -> Path:
    """A cache of one view as stock inference sees it; its config lies beside it."""
    store = tmp_path_factory.mktemp("judged") / "cache"
    nodes: dict[str, dict[str, object]] = {
        "VIEWS": AT_TEST_SCALE, "TEACHER": {"CONFIG": str(teacher)},
    }  # fmt: skip
    dump(write_dump_config(store, images_folder, teacher.parent, nodes))
    return store


@pytest.fixture(scope="module")
def predictions(cache: Path, images_folder: Path) -> dict[int, Any]:
    """What detectron2's DefaultPredictor finds in every image."""
    predictor = DefaultPredictor(stock_config(cache))
    document = json.loads((images_folder / "annotations/instances_train.json").read_text())
    found = {}
    for image in document["images"]:
        pixels = read_image(str(images_folder / "images" / image["file_name"]), format="BGR")
        found[image["id"]] = predictor(pixels)["instances"]
    return found


@pytest.fixture(scope="module")
def annotations(
    tmp_path_factory: pytest.TempPathFactory, images_folder: Path, predictions: dict[int, Any]
) -> Path:
    """A folder whose objects are most of the predictions, some of them moved."""
    folder = tmp_path_factory.mktemp("annotated")
    shutil.copytree(images_folder / "images", folder / "images")
    (folder / "annotations").mkdir()
    document = json.loads((images_folder / "annotations/instances_train.json").read_text())
    generator = np.random.default_rng(3)
    document["annotations"] = []
    for image_id, found in predictions.items():
        for box, label in zip(found.pred_boxes.tensor.numpy(), found.pred_classes, strict=True):
            if generator.random() < 0.3:
                continue
            shift = generator.choice([0.0, 0.1, 0.2]) * (box[2] - box[0])
            x1, y1, x2, y2 = (box + np.array([shift, 0, shift, 0])).tolist()
            entry = {"id": len(document["annotations"]) + 1, "image_id": image_id, "iscrowd": 0}
            entry |= {"category_id": CATEGORY_IDS[label], "area": (x2 - x1) * (y2 - y1)}
            document["annotations"].append(entry | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    document["categories"] = [{"id": one, "name": f"kind {one}"} for one in CATEGORY_IDS[::-1]]
    (folder / "annotations/instances_val.json").write_text(json.dumps(document))
    return folder / "annotations/instances_val.json"


def stock_config(cache: Path) -> CfgNode:
    cfg = load_config(str(cache.with_suffix(".yaml")))
    register_data(cfg)
    return teacher_config(cfg)


def test_cached_boxes_are_those_of_the_default_predictor(
    cache: Path, predictions: dict[int, Any]
) -> None:
    reader = CacheReader(cache)
    augmentation = Augmentation.of_fingerprint(reader.manifest.augmentation)
    boxes = 0
    for image_id, expected in predictions.items():
        record = reader.record_number(image_id, 0)
        height, width = expected.image_size
        view = plan_view(augmentation, image_id=image_id, view=0, height=height, width=width)
        found = image_detections(reader.read(record)["detections"], view)
        assert torch.equal(found.pred_classes, expected.pred_classes)
        assert torch.allclose(found.scores, expected.scores, atol=1e-3, rtol=0)
        assert torch.allclose(
            found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0
        )
        boxes += len(found)
    assert boxes > 20


def test_the_ap_of_a_view_at_test_scale_is_that_of_stock_evaluation(
    cache: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = stock_config(cache)
    cfg.DATASET.FOLDER = str(annotations.parent.parent)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("folder_val",)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.DATALOADER.NUM_WORKERS = 0
    register_data(cfg)
    expected = evaluate(cfg, load_model(cfg))["folder_val"]
    assert 20 < expected["AP"] < 95
    capsys.readouterr()

    assert main(["evaluate", str(cache), "--annotations", str(annotations), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["views"]["0"] == pytest.approx(expected, abs=1e-6)
    assert result["images"] == result["annotated_images"] == 10
    assert main(["evaluate", str(cache), "--annotations", str(annotations), "--view", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{cache}: 10 of 10 annotated images"
    assert lines[1].startswith(f"view 0: AP {expected['AP']:.2f}  AP50 {expected['AP50']:.2f}")


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_of_a_view_go_back_to_where_they_are_in_the_image(flip: bool) -> None:
    boxes = np.array([[3, 4, 50, 40], [0, 0, 90, 64], [80, 10, 90, 12]], dtype=np.float32)
    config = ViewsConfig(scales=(80,), max_size=160, flip=float(flip))
    augmentation = Augmentation.of_config(config)
    view = plan_view(augmentation, image_id=1, view=0, height=64, width=90)
    assert (view.height, view.width) == (80, 113)
    rows = np.full((5, 6), -1, dtype=np.float32)
    rows[:3, :4] = view.transforms().apply_box(boxes)
    rows[:3, 4:] = [[0.9, 2], [0.5, 0], [0.1, 1]]
    found = image_detections(rows, view)
    assert np.allclose(found.pred_boxes.tensor, boxes, atol=1e-4)
    assert found.pred_classes.tolist() == [2, 0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.1])
    assert found.image_size == (64, 90)


def test_only_whole_views_are_evaluated(
    reference: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copytree(reference, tmp_path / "store"))
    assert set(evaluate_cache(str(store), str(annotations)).views) == {0, 1}
    reader = CacheReader(store)
    shard, _ = reader.place_of(len(reader) - 1)
    (store / "commits" / shard.bucket / f"{shard.number:05d}.json").unlink()
    found = evaluate_cache(str(store), str(annotations))
    assert set(found.views) == {0} and found.incomplete == (1,)
    assert "view 1: incomplete, not evaluated" in str(found)
    arguments = ["evaluate", str(store), "--annotations", str(annotations), "--view"]
    assert main([*arguments, "1"]) == 1
    assert "view 1 lacks shards" in capsys.readouterr().err
    assert main([*arguments, "2"]) == 1
    assert "holds views 0 to 1, not 2" in capsys.readouterr().err
    shutil.rmtree(store / "commits")
    with pytest.raises(ValueError, match="every view lacks shards"):
        evaluate_cache(str(store), str(annotations))


def test_a_cache_of_some_images_is_evaluated_on_those(cache: Path, annotations: Path) -> None:
    document = json.loads(annotations.read_text())
    extra = {"id": 1000, "file_name": "more.png", "height": 50, "width": 50}
    more = annotations.with_name("more.json")
    document["images"].append(extra)
    box = {"id": 1000, "image_id": 1000, "category_id": 4, "bbox": [1, 1, 9, 9]}
    document["annotations"].append(box | {"area": 81, "iscrowd": 0})
    more.write_text(json.dumps(document))
    found = evaluate_cache(str(cache), str(more))
    assert (found.images, found.annotated_images) == (10, 11)
    assert found.views == evaluate_cache(str(cache), str(annotations)).views


def test_a_cache_with_a_step_of_the_user_s_is_evaluated_with_its_module(
    cache: Path,
    configure: Configure,
    annotations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "my_upside.py").write_text(UPSIDE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("dataset.views.registry.STEPS", dict(OUR_STEPS))
    arguments = ["evaluate", str(tmp_path / "own"), "--annotations", str(annotations)]
    import_modules(["my_upside"])
    dump(configure("own", VIEWS={**AT_TEST_SCALE, "STEPS": ["upside"]}))
    monkeypatch.setattr("dataset.views.registry.STEPS", dict(OUR_STEPS))
    assert main(arguments) == 1
    assert "'upside', which is not registered (registered: crop" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "my_upside")
    assert main([*arguments, "--import", "my_upside", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 10


def keep_objects(document: dict[str, Any], key: str, ids: list[int]) -> None:
    document["annotations"] = [one for one in document["annotations"] if one[key] in ids]


def without_an_image(document: dict[str, Any]) -> None:
    document["images"].pop()
    keep_objects(document, "image_id", [image["id"] for image in document["images"]])


def with_another_size(document: dict[str, Any]) -> None:
    document["images"][0]["height"] = 10


def without_a_category(document: dict[str, Any]) -> None:
    document["categories"].pop()
    keep_objects(document, "category_id", [one["id"] for one in document["categories"]])


def with_a_null_box(document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"] = None


def without_objects(document: dict[str, Any]) -> None:
    del document["annotations"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_an_image, "1 images are gone: 2"),
        (with_another_size, r"1 images have another size: 7 \(0007\.png\), whose view 0 was"),
        (without_a_category, "has 2 categories, but the teacher .* has 3 classes"),
        (with_a_null_box, r"other\.json: .*: annotation 1: `bbox` must be 4 numbers, got None"),
        (without_objects, "there is no list `annotations`"),
        (lambda d: d["annotations"].clear(), r"expected objects to find, got none in the \d+ imag"),
    ],
)
def test_annotations_of_something_else_are_refused(
    cache: Path, annotations: Path, tmp_path: Path, change: Any, said: str
) -> None:
    document = copy.deepcopy(json.loads(annotations.read_text()))
    change(document)
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=said):
        evaluate_cache(str(cache), str(path))


def test_a_teacher_that_finds_nothing_has_an_ap_of_0(
    cache: Path, annotations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_many = CacheReader.read_many

    def nothing(self: CacheReader, records: Any) -> Any:
        rows = [one["detections"] for one in read_many(self, records)]
        return [{"detections": np.full_like(row, -1)} for row in rows]

    monkeypatch.setattr(CacheReader, "read_many", nothing)
    assert evaluate_cache(str(cache), str(annotations)).views[0]["AP"] == 0.0


# Views that lose most of their objects, or a part of them.
CROPPED = {**AT_TEST_SCALE, "CROP": ["relative", 0.6, 0.6], "FLIP": 1.0, "NUM": 2}


@pytest.fixture(scope="module")
def cropped(
    tmp_path_factory: pytest.TempPathFactory, images_folder: Path, teacher: Path
) -> tuple[Path, Path]:
    """A cache of cropped views, and annotations of what the teacher found in view 0 of each."""
    store = tmp_path_factory.mktemp("cropped") / "cache"
    nodes: dict[str, dict[str, object]] = {
        "VIEWS": CROPPED, "TEACHER": {"CONFIG": str(teacher)},
    }  # fmt: skip
    dump(write_dump_config(store, images_folder, teacher.parent, nodes))
    source = images_folder / "annotations/instances_train.json"
    document = json.loads(source.read_text())
    document["annotations"] = []
    for image in document["images"]:
        for box, label in in_the_image(store, image):
            entry = {"id": len(document["annotations"]) + 1, "image_id": image["id"], "iscrowd": 0}
            entry |= {"category_id": label + 1, "bbox": box, "area": box[2] * box[3]}
            document["annotations"].append(entry)
    path = store.with_name("found.json")
    path.write_text(json.dumps(document))
    return store, path


def in_the_image(store: Path, image: dict[str, Any]) -> list[tuple[list[float], int]]:
    """The teacher's boxes of view 0, XYWH_ABS in pixels of the image, and their classes."""
    reader = CacheReader(store)
    augmentation = Augmentation.of_fingerprint(reader.manifest.augmentation)
    size = {"height": image["height"], "width": image["width"]}
    view = plan_view(augmentation, image_id=image["id"], view=0, **size)
    record = reader.read(reader.record_number(image["id"], 0))
    found = image_detections(record["detections"], view)
    boxes = found.pred_boxes.tensor.numpy().astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    return list(zip(boxes.tolist(), found.pred_classes.tolist(), strict=True))


def test_a_cropped_view_is_compared_with_what_it_shows(cropped: tuple[Path, Path]) -> None:
    store, annotations = cropped
    perfect = evaluate_cache(str(store), str(annotations))
    assert perfect.cropped == (0, 1)
    assert perfect.views[0]["AP"] == pytest.approx(100)
    assert "(of what the view shows)" in str(perfect)
    changed = annotations.with_name("more.json")
    changed.write_text(json.dumps(with_hidden_parts(store, json.loads(annotations.read_text()))))
    assert evaluate_cache(str(store), str(changed)).views[0]["AP"] == pytest.approx(100)


def test_a_cropped_view_that_shows_no_object_has_no_ap(cropped: tuple[Path, Path]) -> None:
    store, annotations = cropped
    document = json.loads(annotations.read_text())
    document["annotations"] = []
    hidden = with_hidden_parts(store, document)
    hidden["annotations"] = hidden["annotations"][:1]
    changed = annotations.with_name("hidden.json")
    changed.write_text(json.dumps(hidden))
    found = evaluate_cache(str(store), str(changed), view=0)
    assert not found.views and found.empty == (0,)
    assert "view 0: shows no object, not evaluated" in str(found)


def with_hidden_parts(store: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Objects that go on behind the right edge of view 0, and some that lie above or below it."""
    augmentation = Augmentation.of_fingerprint(CacheReader(store).manifest.augmentation)
    crops = {}
    for image in document["images"]:
        size = {"height": image["height"], "width": image["width"]}
        view = plan_view(augmentation, image_id=image["id"], view=0, **size)
        crops[image["id"]] = top, left, height, width = view.steps[0][1]
        for one in document["annotations"]:
            x, y, wide, high = one["bbox"]
            if one["image_id"] == image["id"] and abs(x + wide - left - width) < 1e-3:
                one["bbox"] = [x, y, image["width"] - x, high]
    for number, (image_id, (top, _, height, _)) in enumerate(crops.items()):
        entry = {"id": 10_000 + number, "image_id": image_id, "category_id": 1, "iscrowd": 0}
        outside = [0, 0, 50, top] if top else [0, top + height, 50, 5]
        document["annotations"].append({**entry, "bbox": outside, "area": 9})
    return document
