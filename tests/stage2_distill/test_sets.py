"""Trainings on several data sets, and which caches serve them."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load_config
from detectors import Setup, training_images
from detectors.command import register_data
from stage1_dump.dump import run as dump
from stage2_distill import fidelity, show
from stage2_distill.cache_check import open_cache
from stage2_distill.data import ViewDataset
from stage2_distill.sampler import Draw
from storage import CacheReader
from tests.stage2_distill.conftest import write_student
from tests.stage2_distill.runs import build, losses_of, train, train_until

STEP = 2**48
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def sets(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/` of the splits `a`, `b` and `val`, whose ids are the same, and a cache of a and b."""
    made = tmp_path_factory.mktemp("sets")
    annotations = made / "data/annotations"
    annotations.mkdir(parents=True)
    (made / "data/images").symlink_to(folder / "data/images")
    whole = json.loads((folder / "data/annotations/instances_train.json").read_text())
    ids = [one["id"] for one in whole["images"]]
    for split, own in (("a", ids[:7]), ("b", ids[7:])):
        numbers = {one: number + 1 for number, one in enumerate(own)}
        part = {
            **whole,
            "images": [
                {**one, "id": numbers[one["id"]]} for one in whole["images"] if one["id"] in own
            ],
            "annotations": [
                {**one, "image_id": numbers[one["image_id"]]}
                for one in whole["annotations"]
                if one["image_id"] in own
            ],
        }
        (annotations / f"instances_{split}.json").write_text(json.dumps(part))
    val = (folder / "data/annotations/instances_val.json").read_text()
    (annotations / "instances_val.json").write_text(val)
    dump(load_config(str(student(folder, made, made, "a", "b"))))
    return made


def student(folder: Path, sets: Path, target: Path, *splits: str, **nodes: Any) -> Path:
    content = {
        "DATASET": {"FOLDER": str(sets / "data")},
        "DATASETS": {"TRAIN": [f"folder_{split}" for split in splits], "TEST": ["folder_val"]},
        "CACHE": {"LOCATION": str(sets / "cache")},
    }
    return write_student(folder, target, "exact", **{**content, **nodes})


@pytest.fixture
def write(folder: Path, sets: Path, tmp_path: Path) -> Write:
    return lambda *splits, **nodes: student(folder, sets, tmp_path, *splits, **nodes)


def use(path: Path, *overrides: str) -> tuple[CacheReader, set[int]]:
    cfg = load_config(str(path), overrides)
    register_data(cfg)
    setup = Setup(cfg)
    images = training_images(setup)
    return open_cache(setup, images), {one["image_id"] for one in images}


def test_a_student_learns_from_the_images_of_both(write: Write, tmp_path: Path) -> None:
    path = write("a", "b")
    trainer = build(path)
    drawn = {draw.position for batch in islice(trainer._data.sampler, 8) for draw in batch}
    assert len(drawn) == 12
    whole = losses_of(train(path, "SOLVER.MAX_ITER", 6))
    stopped = ["OUTPUT_DIR", tmp_path / "stopped"]
    train_until(path, 4, *stopped)
    rest = losses_of(train(path, "SOLVER.MAX_ITER", 6, *stopped, resume=True))
    assert rest == {name: values[4:] for name, values in whole.items()}


def test_items_are_of_the_image_that_the_annotations_name(write: Write, sets: Path) -> None:
    cfg = load_config(str(write("a", "b")))
    register_data(cfg)
    setup = Setup(cfg)
    images = training_images(setup)
    dataset = ViewDataset(images, setup, open_cache(setup, images))
    for position, image in enumerate(images):
        # The cached pixels are compared with those that are read.
        item = dataset[Draw(position=position, view=1)]
        assert item["image_id"] == image["image_id"]
    assert {one["image_id"] for one in images} == {*range(1, 8), *range(STEP + 1, STEP + 6)}


def test_a_cache_of_both_serves_a_training_on_the_first(write: Write, caplog: Any) -> None:
    _, ids = use(write("a"))
    assert ids == set(range(1, 8))
    assert "is not the file that the cache was dumped with" not in caplog.text
    assert losses_of(train(write("a")))


@pytest.mark.parametrize("splits", [("b",), ("b", "a"), ("a", "b", "val")])
def test_other_sets_than_those_of_the_cache_are_refused(
    write: Write, splits: tuple[str, ...]
) -> None:
    names = ", ".join(f"folder_{split}" for split in splits)
    with pytest.raises(ValueError, match=rf"cached folder_a, folder_b, config {names} \("):
        use(write(*splits))


def test_a_set_may_have_another_name_if_its_images_are_the_same(
    write: Write, sets: Path, folder: Path, tmp_path: Path
) -> None:
    annotations = tmp_path / "renamed/annotations"
    annotations.mkdir(parents=True)
    (tmp_path / "renamed/images").symlink_to(folder / "data/images")
    for old, new in (("a", "x"), ("b", "b"), ("val", "val")):
        text = (sets / f"data/annotations/instances_{old}.json").read_text()
        (annotations / f"instances_{new}.json").write_text(text)
    assert len(use(write("x", "b", DATASET={"FOLDER": str(tmp_path / "renamed")}))[1]) == 12


def test_a_cache_of_one_set_serves_no_second_one(write: Write, sets: Path, tmp_path: Path) -> None:
    cache = {"CACHE": {"LOCATION": str(tmp_path / "one")}}
    dump(load_config(str(write("a", **cache))))
    with pytest.raises(
        ValueError, match=r"cached a single set \(its name is not kept\), "
    ) as caught:
        use(write("a", "b", **cache))
    assert "config folder_a, folder_b (" in str(caught.value)
    assert "more sets want a dump to another CACHE.LOCATION" in str(caught.value)


def test_some_images_of_both_may_be_used(write: Write, tmp_path: Path) -> None:
    listed = tmp_path / "ids.txt"
    listed.write_text(f"2\n3\n{STEP + 1}\n")
    assert use(write("a", "b"), "DATASET.IMAGE_LIST", str(listed))[1] == {2, 3, STEP + 1}
    assert use(write("a", "b"), "DATASET.MAX_IMAGES", "1")[1] == {1, STEP + 1}
    assert len(use(write("a", "b"), "DATASET.EXCLUDE", str(listed))[1]) == 9


def test_pictures_and_fidelity_are_of_both(write: Write, sets: Path, tmp_path: Path) -> None:
    path = write("a", "b", SOLVER={"IMS_PER_BATCH": 3, "MAX_ITER": 1})
    train(path)
    cfg = load_config(str(path), ["MODEL.WEIGHTS", str(tmp_path / "output/student_final.pth")])
    register_data(cfg)
    drawn = list(show.draw_views(Setup(cfg), count=2, folder=tmp_path / "pictures"))
    assert [one.stem for one in drawn] == ["view_1", f"view_{STEP + 5}"]
    fidelity.measure(Setup(load_config(str(path))), [fidelity.INITIAL], num_views=2)


@pytest.mark.parametrize("filtered", [True, False])
def test_a_cache_serves_trainings_with_and_without_images_of_no_object(
    write: Write, sets: Path, folder: Path, tmp_path: Path, filtered: bool
) -> None:
    annotations = tmp_path / "emptied/annotations"
    annotations.mkdir(parents=True)
    (tmp_path / "emptied/images").symlink_to(folder / "data/images")
    for split in ("a", "b", "val"):
        content = json.loads((sets / f"data/annotations/instances_{split}.json").read_text())
        kept = [one for one in content["annotations"] if one["image_id"] != 2]
        (annotations / f"instances_{split}.json").write_text(
            json.dumps({**content, "annotations": kept})
        )
    data = {"DATASET": {"FOLDER": str(tmp_path / "emptied")}}
    ids = use(write("a", "b", **data), "DATALOADER.FILTER_EMPTY_ANNOTATIONS", str(filtered))[1]
    assert len(ids) == (10 if filtered else 12)
