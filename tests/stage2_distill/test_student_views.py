"""STUDENT_VIEWS: the student sees other pixels than the teacher, the same ones after a resume."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.loader import default_config, load_config
from configs.nodes import StudentViewsConfig
from dataset.views import plan_views
from detectors import Setup, training_images
from detectors.command import register_data
from stage2_distill.data import ViewDataset, largest_item_bytes
from stage2_distill.sampler import Draw
from stage2_distill.student_views import student_augmentation
from stage2_distill.teacher import TEACHER_IMAGE, open_teacher
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import build, losses_of, train

CHANGED = {
    "BRIGHTNESS": [0.5, 0.9], "CONTRAST": [0.6, 1.4], "SATURATION": [0.6, 1.4],
    "HUE": [-0.1, 0.1], "GRAYSCALE": 0.3, "BLUR": [0.5, 0.5, 2.0], "ERASING": [0.5, 0.05, 0.2],
}  # fmt: skip


def dataset_of(path: Path, **options: Any) -> ViewDataset:
    cfg = load_config(str(path))
    register_data(cfg)
    setup = Setup(cfg)
    images = training_images(setup)
    teacher = open_teacher(setup, images)
    return ViewDataset(images, setup, teacher.reader if teacher else None, **options)


@pytest.mark.parametrize("source", ["cache", "live", "none"])
def test_the_student_sees_changed_pixels_and_the_teacher_clean_ones(
    configure: Configure, source: str
) -> None:
    teacher = {"SOURCE": source}
    clean = dataset_of(configure(TEACHER=teacher))[Draw(position=2, view=1)]
    dataset = dataset_of(configure(TEACHER=teacher, STUDENT_VIEWS=CHANGED))
    item = dataset[Draw(position=2, view=1)]
    assert torch.equal(item[TEACHER_IMAGE], clean["image"]) and TEACHER_IMAGE not in clean
    assert item["image"].shape == clean["image"].shape
    assert (item["image"] != clean["image"]).float().mean() > 0.5
    assert torch.equal(item["instances"].gt_boxes.tensor, clean["instances"].gt_boxes.tensor)
    assert item.get("codes", {}).keys() == clean.get("codes", {}).keys()
    again = dataset[Draw(position=2, view=1)]
    later = dataset[Draw(position=2, view=1, epoch=1)]
    assert torch.equal(again["image"], item["image"])
    assert not torch.equal(later["image"], item["image"])


def test_the_teacher_s_image_travels_to_a_live_one_alone(configure: Configure) -> None:
    for source in ("cache", "live", "none"):
        path = configure(TEACHER={"SOURCE": source}, STUDENT_VIEWS=CHANGED)
        batch = next(iter(build(path)._data.loader))
        assert {TEACHER_IMAGE in item for item in batch} == {source == "live"}


def test_a_live_teacher_says_what_a_cache_says(configure: Configure) -> None:
    """With a teacher that saw the student's image, losses of the two would be far apart."""
    overrides = {"STUDENT_VIEWS": CHANGED, "SOLVER": {"MAX_ITER": 2}}
    cached = losses_of(train(configure(**overrides)))
    live = losses_of(train(configure(**overrides, TEACHER={"SOURCE": "live"})))
    clean = losses_of(train(configure(SOLVER={"MAX_ITER": 2})))
    for name, losses in cached.items():
        assert losses == pytest.approx(live[name], rel=1e-3)
        assert losses[0] != clean[name][0]


def test_a_resumed_training_sees_what_one_without_a_stop_sees(configure: Configure) -> None:
    path = configure(STUDENT_VIEWS=CHANGED)
    whole, resumed = build(path)._data, build(path)._data
    # Amid the third epoch of twelve images.
    resumed.sampler.first_iter = 9
    expected = next(islice(whole.loader, 9, None))
    for item, other in zip(next(iter(resumed.loader)), expected, strict=True):
        assert item["image_id"] == other["image_id"]
        assert torch.equal(item["image"], other["image"])


def test_memory_of_a_live_teacher_s_images_is_counted(configure: Configure) -> None:
    views = Setup(load_config(str(configure()))).settings.views
    assert largest_item_bytes(views, None, images=2) == 2 * largest_item_bytes(views, None)


def plan(**node: Any) -> Any:
    cfg = default_config()
    augmentation = student_augmentation(cfg, StudentViewsConfig(**node))
    assert augmentation is not None
    sides = np.full(3000, 60), np.full(3000, 100)
    return plan_views(
        augmentation, image_ids=np.arange(3000), view=0, heights=sides[0], widths=sides[1]
    )


def test_steps_act_at_their_rate_and_within_their_ranges() -> None:
    views = plan(grayscale=0.3, blur=(0.6, 0.5, 2.0), erasing=(0.4, 0.05, 0.2))
    assert abs(views.outcomes["grayscale"].mean() - 0.3) < 0.03
    sigmas = views.outcomes["blur"]
    assert abs((sigmas > 0).mean() - 0.6) < 0.03
    assert 0.5 <= sigmas[sigmas > 0].min() < 0.52 and 1.98 < sigmas.max() <= 2.0
    erased = views.outcomes["erasing"]
    shown = erased[erased[:, 2] > 0]
    assert abs(len(shown) / 3000 - 0.4) < 0.03
    shares = shown[:, 2] * shown[:, 3] / 6000
    assert 0.04 < shares.min() < 0.06 and 0.17 < shares.max() < 0.21
    assert (shown[:, :2] + shown[:, 2:] <= [60, 100]).all()


def test_every_step_does_what_it_is_called() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (60, 100, 3), dtype=np.uint8)

    def changed(**node: Any) -> Any:
        return plan(**node)[0].transforms().apply_image(pixels)

    assert np.ptp(changed(grayscale=1.0).astype(int), axis=2).max() == 0
    blurred = changed(blur=(1.0, 2.0, 2.0))
    assert np.abs(np.diff(blurred.astype(int), axis=1)).mean() < 10
    erased = changed(erasing=(1.0, 0.1, 0.1))
    assert abs((erased == 128).all(axis=2).mean() - 0.1) < 0.01
    assert student_augmentation(default_config(), StudentViewsConfig()) is None
