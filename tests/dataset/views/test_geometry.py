"""Steps that move, cut and pad pixels: they do what detectron2's augmentations do, by own draws."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from configs.nodes import ViewsConfig
from dataset.views import Augmentation, Step, ViewArrays, plan_view, plan_views, render
from dataset.views.crop import Crop
from dataset.views.fixed_size import FixedSize
from dataset.views.flip_vertical import FlipVertical
from dataset.views.resize_scale import ResizeScale
from tests.dataset.conftest import pattern

NUMBER = 2000
SHORTEST = ViewsConfig(scales=(64, 80), max_size=160)
JITTER = ViewsConfig(scales=(), max_size=0, scale_range=(0.1, 2.0), fixed_size=(64, 96))
# One view of a 60x100 image by every step of ours that moves pixels.
ALL = replace(JITTER, crop=("relative_range", 0.5, 0.5), flip_vertical=0.5)
# Of image 139, view 1: crop as top, left, height, width; the new size; the corner of the cut.
GOLDEN = {
    "crop": [18, 8, 32, 54],
    "resize_scale": [108, 182],
    "fixed_size": [40, 77],
    "flip": True,
    "flip_vertical": False,
}
CROPS: list[tuple[str, tuple[float, float]]] = [
    ("relative", (0.6, 0.35)), ("relative_range", (0.5, 0.3)), ("absolute", (50, 90)),
    ("absolute_range", (40, 70)), ("absolute_range", (90, 400)),
]  # fmt: skip


def plan(step: Step, number: int = NUMBER) -> ViewArrays:
    """Images of many sizes under one step."""
    generator = np.random.default_rng(3)
    heights, widths = generator.integers(30, 300, (2, number))
    return plan_views(
        Augmentation(seed=5, steps=(step,)),
        image_ids=np.arange(number), view=1, heights=heights, widths=widths,
    )  # fmt: skip


def test_plans_of_every_step_keep_their_numbers() -> None:
    """Caches were written with these: do not change them, raise the step's version."""
    augmentation = Augmentation.of_config(ALL)
    view = plan_view(augmentation, image_id=139, view=1, height=60, width=100)
    assert {step.name: outcome for step, outcome in view.steps} == GOLDEN
    assert view.sizes[-1] == (64, 96)


def test_a_new_step_leaves_the_draws_of_the_others_alone() -> None:
    before, after = (
        plan_view(Augmentation.of_config(one), image_id=3, view=0, height=200, width=200)
        for one in (SHORTEST, replace(SHORTEST, flip_vertical=0.5, fixed_size=(64, 64)))
    )
    outcomes = {step.name: outcome for step, outcome in after.steps}
    assert {step.name: outcomes[step.name] for step, outcome in before.steps} == {
        step.name: outcome for step, outcome in before.steps
    }


def test_jitter_gives_the_sizes_of_detectron2() -> None:
    step = ResizeScale(low=0.1, high=2.0, target=(64, 96))
    views = plan(step)
    factors = 0.1 + step.uniform(views.seed) * 1.9
    stock = T.ResizeScale(0.1, 2.0, 64, 96)
    for view, factor in zip(views, factors, strict=True):
        expected = stock._get_resize(np.empty((*view.sizes[0], 3)), factor)
        assert view.sizes[-1] == (expected.new_h, expected.new_w)
        assert all(np.array(sorted(view.sizes[-1])) <= step.largest_size((1, 1)))
    assert abs(factors.mean() - 1.05) < 0.05


@pytest.mark.parametrize(("kind", "size"), CROPS)
def test_crops_have_the_sizes_of_detectron2(
    kind: str, size: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Crop(kind=kind, size=size)
    views = plan(step, 300)
    shares = np.stack([step.uniform(views.seed, side) for side in (0, 1)], axis=1)
    for view, drawn in zip(views, shares, strict=True):
        queue = list(drawn)
        monkeypatch.setattr(np.random, "rand", lambda count, drawn=drawn: drawn)
        monkeypatch.setattr(
            np.random, "randint",
            lambda low, high, queue=queue: low + int(queue.pop(0) * (high - low)),
        )  # fmt: skip
        expected = T.RandomCrop(kind, size).get_crop_size(view.sizes[0])
        top, left, height, width = view.steps[0][1]
        assert (height, width) == view.sizes[-1] == expected
        assert 0 <= top <= view.sizes[0][0] - height
        assert 0 <= left <= view.sizes[0][1] - width


def test_crops_lie_everywhere_in_the_image() -> None:
    outcomes = plan(Crop(kind="relative", size=(0.5, 0.5))).outcomes["crop"]
    views = plan(Crop(kind="relative", size=(0.5, 0.5)))
    spare = views.sizes[0] - views.sizes[1]
    places = outcomes[:, :2] / spare
    assert places.min() == 0 and places.max() == 1
    assert np.allclose(places.mean(axis=0), 0.5, atol=0.03)
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.07


@pytest.mark.parametrize("stored", [(40, 60), (90, 60), (40, 120), (90, 120), (64, 96)])
def test_a_fixed_size_is_cut_and_padded_as_detectron2_does(
    stored: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = FixedSize(size=(64, 96))
    augmentation = Augmentation(seed=0, steps=(step,))
    view = plan_view(augmentation, image_id=3, view=0, height=stored[0], width=stored[1])
    drawn = step.uniform(np.array([view.seed], dtype=np.uint64))[0]
    monkeypatch.setattr(np.random, "uniform", lambda low, high: drawn)
    stock = T.FixedSizeCrop((64, 96)).get_transform(pattern(*stored))
    Image.fromarray(pattern(*stored)).save(tmp_path / "image.png")
    rendered = render(tmp_path / "image.png", view)
    assert rendered.pixels.shape == (64, 96, 3)
    assert (rendered.pixels == stock.apply_image(pattern(*stored))).all()
    box = np.array([[3.0, 4.0, 30.0, 35.0]])
    moved = rendered.transforms.apply_box(box)
    assert moved.tolist() == stock.apply_box(box).tolist()
    assert rendered.transforms.inverse().apply_box(moved).tolist() == box.tolist()


def test_views_of_a_fixed_size_are_all_of_it() -> None:
    augmentation = Augmentation.of_config(JITTER)
    generator = np.random.default_rng(3)
    heights, widths = generator.integers(30, 300, (2, 500))
    views = plan_views(
        augmentation, image_ids=np.arange(500), view=0, heights=heights, widths=widths
    )
    assert set(views.height) == {64} and set(views.width) == {96}
    assert augmentation.largest_size == (64, 96)
    assert Augmentation.of_config(replace(SHORTEST, fixed_size=(90, 70))).largest_size == (70, 90)


def test_a_vertical_flip_turns_pixels_and_boxes(tmp_path: Path) -> None:
    Image.fromarray(pattern(40, 60)).save(tmp_path / "image.png")
    augmentation = Augmentation(seed=0, steps=(FlipVertical(probability=1.0),))
    rendered = render(
        tmp_path / "image.png",
        plan_view(augmentation, image_id=1, view=0, height=40, width=60),
    )
    assert (rendered.pixels == pattern(40, 60)[::-1]).all()
    moved = rendered.transforms.apply_box(np.array([[10.0, 8.0, 40.0, 24.0]]))
    assert moved.tolist() == [[10, 16, 40, 32]]
    rates = plan(FlipVertical(probability=0.3)).outcomes["flip_vertical"]
    assert abs(rates.mean() - 0.3) < 0.05


def test_boxes_come_back_through_all_steps() -> None:
    augmentation = Augmentation.of_config(ALL)
    for number in range(20):
        view = plan_view(augmentation, image_id=7, view=number, height=60, width=100)
        top, left, height, width = view.steps[0][1]
        box = np.array([[left + 2.0, top + 3.0, left + width - 4.0, top + height - 1.0]])
        moved = view.transforms().apply_box(box)
        assert np.allclose(view.transforms().inverse().apply_box(moved), box)


def test_boxes_of_a_crop_do_not_reach_into_padding(tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 100, 3), 255, dtype=np.uint8)).save(tmp_path / "image.png")
    config = ViewsConfig(
        crop=("relative", 0.5, 0.5), scales=(30,), max_size=160, fixed_size=(64, 96),
        flip_vertical=0.5,
    )  # fmt: skip
    for number in range(8):
        augmentation = Augmentation.of_config(config)
        view = plan_view(augmentation, image_id=7, view=number, height=60, width=100)
        rendered = render(tmp_path / "image.png", view)
        box = rendered.transforms.apply_box(np.array([[0.0, 0.0, 100.0, 60.0]]))[0].astype(int)
        bright = rendered.pixels[..., 0] > 128
        columns, rows = np.flatnonzero(bright.any(axis=0)), np.flatnonzero(bright.any(axis=1))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        outside = np.array([[0.0, 0.0, 100.0, 60.0]])
        top, left, height, width = view.steps[0][1]
        outside[0, :2] = left + width, top + height
        x1, y1, x2, y2 = rendered.transforms.apply_box(outside)[0]
        assert x1 == x2 or y1 == y2


def test_boxes_that_reach_out_of_an_image_do_not_reach_into_padding() -> None:
    config = ViewsConfig(scales=(60,), max_size=160, fixed_size=(80, 128), flip_vertical=0.5)
    beyond = np.array([[80.0, -5.0, 130.0, 70.0], [101.0, 10.0, 120.0, 30.0]])
    flips = set()
    for number in range(12):
        augmentation = Augmentation.of_config(config)
        view = plan_view(augmentation, image_id=7, view=number, height=60, width=100)
        reaching, outside = view.transforms().apply_box(beyond).clip(0, [128, 80] * 2)
        outcomes = {step.name: outcome for step, outcome in view.steps}
        flips.add((outcomes["flip"], outcomes["flip_vertical"]))
        left, right = (28, 48) if outcomes["flip"] else (80, 100)
        top, bottom = (20, 80) if outcomes["flip_vertical"] else (0, 60)
        assert reaching.tolist() == [left, top, right, bottom]
        assert outside[0] == outside[2]
    assert len(flips) == 4


def test_a_fingerprint_gives_every_step_back() -> None:
    for config in (ALL, replace(ALL, crop=("absolute", 50, 50))):
        augmentation = Augmentation.of_config(config)
        assert Augmentation.of_fingerprint(augmentation.fingerprint) == augmentation


@pytest.mark.parametrize(
    "change",
    [
        {"crop": ()}, {"crop": ("relative_range", 0.5, 0.6)}, {"crop": ("relative", 0.5, 0.5)},
        {"scale_range": (0.2, 2.0)}, {"fixed_size": (64, 64)}, {"flip_vertical": 0.4},
    ],
)  # fmt: skip
def test_fingerprints_tell_every_parameter(change: dict[str, Any]) -> None:
    changed = Augmentation.of_config(replace(ALL, **change))
    assert changed.fingerprint != Augmentation.of_config(ALL).fingerprint


@pytest.mark.parametrize(
    ("config", "size", "remedy"),
    [
        (JITTER, (3, 900), "raise the lower end of VIEWS.SCALE_RANGE"),
        (replace(SHORTEST, crop=("relative", 0.1, 0.1)), (4, 90), "raise the size in VIEWS.CROP"),
    ],
)
def test_an_image_of_which_nothing_would_be_left_is_refused(
    config: ViewsConfig, size: tuple[int, int], remedy: str
) -> None:
    with pytest.raises(ValueError, match=rf"image 1: .* {size[0]}x{size[1]} pixels .*; {remedy}"):
        for view in range(99):
            augmentation = Augmentation.of_config(config)
            plan_view(augmentation, image_id=1, view=view, height=size[0], width=size[1])
