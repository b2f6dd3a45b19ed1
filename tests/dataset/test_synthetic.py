"""The synthetic set: equal bytes for equal parameters, and boxes that are true."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.__main__ import main
from dataset.checking import examine
from dataset.figures import SHAPES, TEXTURES, Figure, rasterize
from dataset.reading import load_annotations
from dataset.scenes import CLASS_NAMES, MIN_VISIBLE, SIZE_RANGE, draw_scene
from dataset.synthetic import SyntheticConfig, write_synthetic
from tests.fresh import files_no_larger_than

SMALL = SyntheticConfig(train=30, val=4, size=48, seed=3)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set; the tests only read it."""
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    assert write_synthetic(folder, SMALL, workers=1)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_layout_is_a_coco_folder(small: Path) -> None:
    names = digests(small).keys()
    assert len([name for name in names if name.startswith("images/train_")]) == 30
    assert {"annotations/instances_train.json", "annotations/instances_val.json"} <= names
    assert load_annotations(small / "annotations" / "instances_val.json").images.file_names == [
        f"val_{number:06d}.png" for number in range(1, 5)
    ]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_set_passes_the_check(small: Path, split: str) -> None:
    path = small / "annotations" / f"instances_{split}.json"
    assert examine(path, small / "images").problems == []


def test_bytes_do_not_depend_on_the_number_of_processes(small: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path / "set", SMALL, workers=2)
    assert digests(tmp_path / "set") == digests(small)


def test_a_process_that_dies_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.workers._may_fork", lambda: True)
    monkeypatch.setattr("dataset.synthetic._draw_image", lambda *_: os._exit(9))
    assert main(["synthetic", "--output", str(tmp_path), "--workers", "2"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "one of 2 processes died" in line and "--workers 1" in line


def test_an_image_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_no_larger_than(1000):
        assert main(["synthetic", "--output", str(tmp_path), "--workers", "1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "train_000001.png': larger than this process may write" in line
    assert not list((tmp_path / "images").iterdir())


def test_a_longer_set_begins_with_the_shorter(small: Path, tmp_path: Path) -> None:
    longer = SyntheticConfig(train=2, val=6, size=48, seed=3)
    write_synthetic(tmp_path / "set", longer, workers=1)
    shared = [f"images/{name}.png" for name in ("train_000002", "val_000004")]
    assert [digests(tmp_path / "set")[name] for name in shared] == [
        digests(small)[name] for name in shared
    ]


def test_another_seed_gives_other_images(small: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path / "set", SyntheticConfig(train=1, val=1, size=48, seed=4), workers=1)
    name = "images/train_000001.png"
    assert digests(tmp_path / "set")[name] != digests(small)[name]


def test_no_image_is_in_both_splits_or_there_twice(small: Path) -> None:
    images = [digest for name, digest in digests(small).items() if name.startswith("images/")]
    assert len(set(images)) == len(images) == 34


def test_the_same_set_is_not_written_again(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    assert not write_synthetic(small, SMALL)
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_an_interrupted_set_is_completed(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dataset.synthetic._coco", stop)
        with pytest.raises(KeyboardInterrupt):
            write_synthetic(tmp_path / "set", SMALL, workers=1)
    assert not (tmp_path / "set" / "annotations" / "instances_train.json").exists()
    assert write_synthetic(tmp_path / "set", SMALL, workers=1)
    assert digests(tmp_path / "set") == digests(small)


def test_a_set_with_a_lost_image_is_written_again(tmp_path: Path) -> None:
    config = SyntheticConfig(train=2, val=1, size=32)
    write_synthetic(tmp_path / "set", config, workers=1)
    before = digests(tmp_path / "set")
    (tmp_path / "set" / "images" / "train_000002.png").unlink()
    assert write_synthetic(tmp_path / "set", config, workers=1)
    assert digests(tmp_path / "set") == before


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no synthetic set"):
        write_synthetic(tmp_path, SMALL)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.txt"]
    with pytest.raises(ValueError, match=r"thesis\.txt: is a file; --output must name a folder"):
        write_synthetic(tmp_path / "thesis.txt", SMALL)


def test_a_folder_with_another_set_is_left_alone(small: Path) -> None:
    before = digests(small)
    with pytest.raises(ValueError, match=r"another synthetic set .*'seed': 3.* instead of .*5"):
        write_synthetic(small, SyntheticConfig(train=30, val=4, size=48, seed=5))
    assert digests(small) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert write_synthetic(tmp_path, SyntheticConfig(train=1, val=1, size=32), workers=1)


@pytest.mark.parametrize(
    ("name", "value"), [("train", 0), ("val", -1), ("size", 31), ("size", 5000), ("seed", -1)]
)
def test_parameters_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"--{name} must lie between \d+ and \d+, got {value}"):
        SyntheticConfig(**{name: value})


def test_scenes_vary_in_class_number_and_size() -> None:
    scenes = [draw_scene(np.random.default_rng(seed), 96, 128) for seed in range(100)]
    objects = [thing for scene in scenes for thing in scene.objects]
    assert {thing.class_index for thing in objects} == set(range(len(CLASS_NAMES)))
    numbers = {len(scene.objects) for scene in scenes}
    assert numbers >= {0, 1, 2, 3, 4, 5}
    sides = np.array([max(thing.box_xywh_abs[2:]) for thing in objects]) / 96
    assert sides.min() < 0.2 and sides.max() > 0.6
    # A pixel or two more, for the rounding outwards.
    assert sides.max() <= SIZE_RANGE[1] + 0.05


def test_objects_are_never_hidden_and_boxes_never_empty() -> None:
    for seed in range(40):
        for thing in draw_scene(np.random.default_rng(seed), 64, 64).objects:
            x, y, w, h = thing.box_xywh_abs
            assert x >= 0 and y >= 0 and x + w <= 64 and y + h <= 64
            # Not below: a ring, a cross or a star fills that much of its box at least.
            assert thing.area >= 0.15 * MIN_VISIBLE * w * h and thing.area > 3


def test_a_visible_box_is_tight_around_what_is_painted() -> None:
    from dataset.figures import paint

    figure = Figure(
        shape="star", texture="plain", x=20.3, y=25.8, radius=11, angle=0.4, squeeze=0.8,
        period=5, colors=((1, 1, 1), (1, 1, 1)), noise_seed=0,
    )  # fmt: skip
    image = np.zeros((64, 48, 3), dtype=np.float32)
    raster = rasterize(figure, 64, 48)
    paint(image, figure, raster, light=0.0)
    bright = image.max(axis=2) >= 0.45
    covered = np.zeros((64, 48), dtype=bool)
    covered[raster.rows, raster.columns] = raster.coverage >= 0.5
    for axis in (0, 1):
        ends = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] for mask in (bright, covered)]
        assert np.abs(ends[0] - ends[1]).max() <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_no_figure_reaches_beyond_its_radius(shape: str) -> None:
    u, v = np.meshgrid(np.linspace(-2, 2, 401), np.linspace(-2, 2, 401))
    outside = np.hypot(u, v) > 1.001
    distance = SHAPES[shape](u, v)
    assert distance[outside].max() < 0 < distance[~outside].max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("where", [(0.0, 0.0), (47.9, 63.9), (24.0, 32.0), (-30.0, 5.0)])
def test_figures_are_cut_at_the_border(shape: str, where: tuple[float, float]) -> None:
    figure = Figure(
        shape=shape, texture="plain", x=where[0], y=where[1], radius=9.5, angle=1.0, squeeze=1.0,
        period=5, colors=((1, 1, 1), (0, 0, 0)), noise_seed=0,
    )  # fmt: skip
    raster = rasterize(figure, 64, 48)
    window = np.zeros((64, 48))[raster.rows, raster.columns]
    assert window.shape == raster.coverage.shape == raster.u.shape
    assert 0 < raster.whole_area < 20 * 20
    if where == (24.0, 32.0):
        assert np.count_nonzero(raster.coverage >= 0.5) == raster.whole_area


def test_textures_can_be_told_apart() -> None:
    from dataset.figures import paint

    painted = []
    for texture in TEXTURES:
        image = np.full((40, 40, 3), 0.5, dtype=np.float32)
        figure = Figure(
            shape="disc", texture=texture, x=20, y=20, radius=15, angle=0.2, squeeze=1,
            period=6, colors=((0.9, 0.1, 0.1), (0.1, 0.1, 0.9)), noise_seed=1,
        )  # fmt: skip
        paint(image, figure, rasterize(figure, 40, 40), light=0.0)
        painted.append(image)
    for index, image in enumerate(painted):
        for other in painted[index + 1 :]:
            assert np.abs(image - other).mean() > 0.02


def test_images_are_rgb_of_several_shapes(small: Path) -> None:
    sizes = set()
    for path in (small / "images").iterdir():
        with Image.open(path) as image:
            assert image.mode == "RGB" and image.format == "PNG"
            sizes.add(image.size)
    assert sizes == {(48, 48), (48, 36), (36, 48)}


def test_annotations_hold_what_coco_asks_for(small: Path) -> None:
    document = json.loads((small / "annotations" / "instances_train.json").read_text())
    assert [category["name"] for category in document["categories"]] == list(CLASS_NAMES)
    keys = {"id", "image_id", "category_id", "bbox", "area", "iscrowd"}
    assert all(annotation.keys() == keys for annotation in document["annotations"])
