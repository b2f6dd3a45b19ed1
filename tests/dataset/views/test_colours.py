"""Steps that change colours: the same pixels everywhere, and close to detectron2's."""

import colorsys
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from detectron2.data.transforms import BlendTransform
from PIL import Image

from configs.nodes import ViewsConfig
from dataset.views import Augmentation, plan_view, plan_views, render
from dataset.views.brightness import Brightness
from dataset.views.colour import ONE, ColourStep
from dataset.views.contrast import Contrast
from dataset.views.hue import Hue
from dataset.views.saturation import Saturation
from tests.dataset.conftest import pattern

PLAIN = ViewsConfig(scales=(64,), max_size=160, flip=0.5)
ALL = replace(
    PLAIN, brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.1, 0.1)
)
STEPS: tuple[type[ColourStep], ...] = (Brightness, Contrast, Saturation, Hue)

# CRC32C of a 40x60 pattern changed by a strength. Caches were written with these numbers: do not
# change them, raise the step's version.
GOLDEN = {
    (Brightness, 90_000): 0x71D89AF7,
    (Contrast, 40_000): 0xE112872E,
    (Saturation, 100_000): 0x48906B35,
    (Hue, 300): 0x41A30403,
}


def levels() -> Any:
    return np.random.default_rng(4).integers(0, 256, (50, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize(("key", "crc32c"), GOLDEN.items(), ids=str)
def test_pixels_are_the_same_on_every_machine(key: Any, crc32c: int) -> None:
    step, strength = key
    assert google_crc32c.value(step.changed(strength, pattern(40, 60)).tobytes()) == crc32c


@pytest.mark.parametrize("factor", [0.0, 0.4, 0.9, 1.7, 10.0])
@pytest.mark.parametrize("step", STEPS[:3])
def test_factors_do_what_detectron2_does(step: type[ColourStep], factor: float) -> None:
    pixels = levels()
    source = {
        Brightness: np.zeros((1, 1, 1)),
        Contrast: pixels.mean(),
        Saturation: pixels.dot([0.299, 0.587, 0.114])[..., np.newaxis],
    }[step]  # type: ignore[index]
    stock = BlendTransform(source, src_weight=1 - factor, dst_weight=factor)
    changed = step.changed(round(factor * ONE), pixels).astype(int)
    exact = np.clip(stock.apply_image(pixels.astype(float)), 0, 255)
    # It rounds, detectron2 cuts off; a tenth of a level is the grey's own rounding.
    assert np.abs(changed - exact).max() <= 0.5 + max(0.6 * abs(1 - factor), 0.01)
    assert np.abs(changed - stock.apply_image(pixels)).max() <= 1 + abs(1 - factor)


@pytest.mark.parametrize("turn", [0.0, 0.05, -0.3, 0.5, -0.5])
def test_hues_turn_as_in_hsv(turn: float) -> None:
    pixels = levels()
    changed = Hue.changed(round(turn * Hue.units), pixels)
    for before, after in zip(pixels.reshape(-1, 3), changed.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255.0).tolist())
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        assert np.abs(np.array(expected) * 255 - after).max() < 2


def test_grey_has_no_hue_and_no_saturation() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    assert (Hue.changed(200, grey) == grey).all()
    assert np.abs(Saturation.changed(5 * ONE, grey).astype(int) - grey).max() == 0
    assert np.ptp(Saturation.changed(0, levels()).astype(int), axis=2).max() == 0


@pytest.mark.parametrize("step", STEPS)
def test_a_strength_that_changes_nothing_changes_nothing(step: type[ColourStep]) -> None:
    neutral = round(step.neutral * step.units)
    assert (step.changed(neutral, levels()) == levels()).all()
    assert step.of_range((step.neutral, step.neutral)) is None


def test_strengths_are_uniform_in_their_range_and_independent() -> None:
    sides = np.full(5000, 64)
    views = plan_views(
        Augmentation.of_config(ALL), image_ids=np.arange(5000), view=0, heights=sides, widths=sides
    )
    drawn = []
    for step in STEPS:
        strengths = views.outcomes[step.name] / step.units
        low, high = getattr(ALL, step.name)
        drawn.append((strengths - low) / (high - low))
        assert -0.01 < drawn[-1].min() < 0.02 and 0.98 < drawn[-1].max() < 1.01
        assert abs(drawn[-1].mean() - 0.5) < 0.02
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.06


def test_views_without_colours_have_no_such_steps_and_the_others_draw_as_before() -> None:
    size = {"height": 64, "width": 90}
    without, view = (
        plan_view(Augmentation.of_config(one), image_id=3, view=1, **size) for one in (PLAIN, ALL)
    )
    outcomes = {step.name: outcome for step, outcome in view.steps}
    assert [step.name for step, _ in without.steps] == ["resize", "flip"]
    assert all(outcomes[step.name] == outcome for step, outcome in without.steps)
    assert Augmentation.of_fingerprint(Augmentation.of_config(ALL).fingerprint).steps == tuple(
        step for step, _ in view.steps
    )


def test_boxes_stay_where_they_are_and_padding_stays_grey(tmp_path: Path) -> None:
    Image.fromarray(pattern(64, 90)).save(tmp_path / "image.png")
    config = replace(ALL, fixed_size=(80, 100), flip=0.0, brightness=(3.0, 3.0))
    view = plan_view(Augmentation.of_config(config), image_id=1, view=0, height=64, width=90)
    rendered = render(tmp_path / "image.png", view)
    assert (rendered.pixels[64:] == 128).all() and (rendered.pixels[:, 90:] == 128).all()
    assert (rendered.pixels[:64, :90] != pattern(64, 90)).any()
    box = np.array([[10.0, 8.0, 40.0, 24.0]])
    assert rendered.transforms.apply_box(box).tolist() == box.tolist()
    assert rendered.transforms.inverse().apply_box(box).tolist() == box.tolist()
