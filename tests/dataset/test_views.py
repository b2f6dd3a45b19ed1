"""Deterministic views: the hash, the plan and the pixels."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from configs.nodes import ViewsConfig
from dataset.views import (
    View,
    augmentation_fingerprint,
    plan_view,
    plan_views,
    render,
    view_seed,
    view_seeds,
)
from tests.dataset.conftest import pattern

CONFIG = ViewsConfig(seed=0, scales=(64, 80, 96), max_size=160, flip=0.5)

# Worked out from the module's text by other code. Every cache was written with these numbers: do
# not change them, add a hash version.
GOLDEN_SEEDS = {
    (0, 0, 0): 2558736989570252433,
    (0, 139, 0): 16905928804057917263,
    (0, 139, 1): 10773375345419966615,
    (7, 581929, 3): 8466639534113027496,
    (2**63 - 1, 2**63 - 1, 2**31): 9346569215803548106,
    (1, -1, 0): 5967011716909498425,
}
# (image id, view): (flip, height, width) of a 60x100 image under CONFIG.
GOLDEN_VIEWS = {
    (0, 0): (True, 64, 107),
    (139, 0): (False, 80, 133),
    (139, 1): (True, 96, 160),
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A 40x60 image, height x width."""
    path = tmp_path / "image.png"
    Image.fromarray(pattern(40, 60)).save(path)
    return path


def view_of(height: int, width: int, *, flip: bool = False) -> View:
    return View(image_id=1, view=0, seed=0, flip=flip, height=height, width=width)


@pytest.mark.parametrize(("key", "seed"), GOLDEN_SEEDS.items())
def test_seeds_are_the_ones_of_hash_version_1(key: tuple[int, int, int], seed: int) -> None:
    assert view_seed(*key) == seed
    assert view_seeds(key[0], [key[1]], key[2]).tolist() == [seed]


@pytest.mark.parametrize(("key", "expected"), GOLDEN_VIEWS.items())
def test_plans_are_the_ones_of_hash_version_1(
    key: tuple[int, int], expected: tuple[bool, int, int]
) -> None:
    view = plan_view(CONFIG, image_id=key[0], view=key[1], height=60, width=100)
    assert (view.flip, view.height, view.width) == expected
    assert view.seed == view_seed(0, *key)


@given(
    seed=st.integers(0, 2**63 - 1),
    view=st.integers(0, 2**31 - 1),
    scales=st.lists(st.integers(1, 1333), min_size=1, max_size=7),
    spare=st.integers(0, 700),
    flip=st.floats(0, 1),
    images=st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(64, 5000), st.integers(64, 5000)),
        min_size=1,
        max_size=20,
    ),
)
def test_many_views_at_once_equal_one_at_a_time(
    seed: int,
    view: int,
    scales: list[int],
    spare: int,
    flip: float,
    images: list[tuple[int, int, int]],
) -> None:
    # A longest edge of 80 or more leaves at least one pixel of a 64x5000 image.
    largest = max(80, *scales) + spare
    config = ViewsConfig(seed=seed, scales=tuple(scales), max_size=largest, flip=flip)
    ids, heights, widths = zip(*images, strict=True)
    many = plan_views(config, image_ids=ids, view=view, heights=heights, widths=widths)
    assert len(many) == len(images)
    for index, (image_id, height, width) in enumerate(images):
        one = plan_view(config, image_id=image_id, view=view, height=height, width=width)
        assert many[index] == one


def test_scales_are_uniform_and_flips_at_their_rate_and_independent() -> None:
    number = 60_000
    config = replace(CONFIG, scales=(64, 80, 96), flip=0.3)
    ones = np.full(number, 200)
    views = plan_views(config, image_ids=np.arange(number), view=0, heights=ones, widths=ones)
    for scale in config.scales:
        chosen = views.height == scale
        # Five standard deviations of a fair draw.
        assert abs(chosen.mean() - 1 / 3) < 5 * np.sqrt(2 / 9 / number)
        assert abs(views.flip[chosen].mean() - 0.3) < 5 * np.sqrt(0.21 / chosen.sum())
    assert len(np.unique(views.seed)) == number


def test_views_of_an_image_are_drawn_anew() -> None:
    ids, ones = np.arange(2000), np.full(2000, 200)
    first, second = (
        plan_views(CONFIG, image_ids=ids, view=view, heights=ones, widths=ones) for view in (0, 1)
    )
    assert abs((first.height == second.height).mean() - 1 / 3) < 0.06
    assert abs((first.flip == second.flip).mean() - 1 / 2) < 0.06


@pytest.mark.parametrize(("flip", "expected"), [(0.0, False), (1.0, True)])
def test_flip_of_0_never_flips_and_of_1_always(flip: float, expected: bool) -> None:
    ids, ones = np.arange(5000), np.full(5000, 64)
    views = plan_views(replace(CONFIG, flip=flip), image_ids=ids, view=0, heights=ones, widths=ones)
    assert (views.flip == expected).all()


def test_the_flip_setting_does_not_move_the_scales() -> None:
    ids, ones = np.arange(100), np.full(100, 64)
    plans = [
        plan_views(replace(CONFIG, flip=flip), image_ids=ids, view=0, heights=ones, widths=ones)
        for flip in (0.1, 0.9)
    ]
    assert (plans[0].height == plans[1].height).all()


@pytest.mark.parametrize("size", [(0, 10), (10, -1)])
def test_plan_refuses_a_size_without_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"image 5: .* must be positive, got {size[0]}x{size[1]}"):
        plan_view(CONFIG, image_id=5, view=0, height=size[0], width=size[1])
    with pytest.raises(ValueError, match=r"image 5: .* must be positive"):
        plan_views(CONFIG, image_ids=[4, 5], view=0, heights=[9, size[0]], widths=[9, size[1]])


def test_plan_refuses_an_image_that_would_shrink_to_nothing() -> None:
    message = r"image 5: at VIEWS.MAX_SIZE 160 its 1x5000 pixels .* a side of no pixels"
    with pytest.raises(ValueError, match=message):
        plan_view(CONFIG, image_id=5, view=0, height=1, width=5000)
    with pytest.raises(ValueError, match=message):
        plan_views(CONFIG, image_ids=[4, 5], view=0, heights=[9, 1], widths=[9, 5000])


def test_plan_refuses_lists_of_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"one length, got shapes \(2,\), \(1,\) and \(2,\)"):
        plan_views(CONFIG, image_ids=[1, 2], view=0, heights=[9], widths=[9, 9])


def test_unscaled_pixels_and_their_checksum_are_the_image(image: Path) -> None:
    rendered = render(image, view_of(40, 60), expected_size=(40, 60))
    assert rendered.pixels.dtype == np.uint8
    assert (rendered.pixels == pattern(40, 60)).all()
    # Of the bytes of the pattern, RGB, rows first; worked out bit by bit by other code.
    assert rendered.crc32c == 0x2BD7AD1A
    assert rendered.pixels.flags.c_contiguous and rendered.pixels.flags.writeable


def test_flip_mirrors_and_changes_the_checksum(image: Path) -> None:
    plain = render(image, view_of(40, 60), expected_size=(40, 60))
    flipped = render(image, view_of(40, 60, flip=True), expected_size=(40, 60))
    assert (flipped.pixels == plain.pixels[:, ::-1]).all()
    assert flipped.pixels.flags.c_contiguous
    assert flipped.crc32c == google_crc32c.value(flipped.pixels.tobytes()) != plain.crc32c


def test_a_sample_has_the_middle_of_every_part(image: Path) -> None:
    rendered = render(image, view_of(40, 60), expected_size=(40, 60))
    sample = rendered.sample(16)
    rows, columns = [1, 3, 6, 8], [1, 5, 9, 13]
    assert (sample[:4, :4] == rendered.pixels[rows][:, columns]).all()
    assert (sample[15, 15] == rendered.pixels[38, 58]).all()
    tiny = render(image, view_of(3, 2), expected_size=(40, 60))
    assert tiny.sample(16).shape == (16, 16, 3)


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_follow_the_pixels(tmp_path: Path, flip: bool) -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[8:24, 10:40] = 255
    Image.fromarray(pixels).save(tmp_path / "box.png")
    rendered = render(tmp_path / "box.png", view_of(80, 120, flip=flip), expected_size=(40, 60))
    box = rendered.transforms.apply_box(np.array([[10.0, 8.0, 40.0, 24.0]]))[0]
    bright = rendered.pixels[..., 0] > 127
    columns, rows = np.flatnonzero(bright.any(axis=0)), np.flatnonzero(bright.any(axis=1))
    assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert box.tolist() == ([40, 16, 100, 48] if flip else [20, 16, 80, 48])


def test_resizing_is_that_of_detectron2(image: Path) -> None:
    from detectron2.data.detection_utils import read_image
    from detectron2.data.transforms import AugInput, ResizeShortestEdge

    view = plan_view(CONFIG, image_id=3, view=0, height=40, width=60)
    rendered = render(image, replace(view, flip=False), expected_size=(40, 60))
    augmented = AugInput(read_image(str(image), format="RGB"))
    ResizeShortestEdge([min(view.height, view.width)], CONFIG.max_size, "choice")(augmented)
    assert (rendered.pixels == augmented.image).all()


def test_pixels_are_the_same_in_another_process_with_other_threads(
    other_process: dict[str, Any],
) -> None:
    view = view_of(77, 115, flip=True)
    here = render(other_process["image"], view, expected_size=(40, 60))
    assert other_process["crc32c"] == here.crc32c


def test_exif_rotation_comes_first(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.png"
    Image.fromarray(pattern(40, 60)).save(turned, exif=exif)
    rendered = render(turned, view_of(60, 40), expected_size=(60, 40))
    assert (rendered.pixels == np.rot90(pattern(40, 60), k=-1)).all()
    with pytest.raises(ValueError, match=r"expected 40x60 .* found 60x40"):
        render(turned, view_of(40, 60), expected_size=(40, 60))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    Image.fromarray(pattern(40, 60)).convert(mode).save(tmp_path / "image.png")
    rendered = render(tmp_path / "image.png", view_of(40, 60), expected_size=(40, 60))
    assert rendered.pixels.shape == (40, 60, 3)


def test_render_names_the_file_and_both_sizes_when_the_image_changed(image: Path) -> None:
    message = rf"{image}: expected 41x60 pixels .* found 40x60; the image or the annotations"
    with pytest.raises(ValueError, match=message):
        render(image, view_of(41, 60), expected_size=(41, 60))


def test_render_refuses_a_truncated_image(tmp_path: Path, image: Path) -> None:
    cut = tmp_path / "cut.jpg"
    Image.fromarray(pattern(40, 60)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"{cut}: cannot be read as an image \(.*truncated"):
        render(cut, view_of(40, 60), expected_size=(40, 60))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_render_refuses_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: cannot be read as an image"):
        render(path, view_of(40, 60), expected_size=(40, 60))


def test_render_names_a_missing_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png: there is no such image"):
        render(tmp_path / "gone.png", view_of(40, 60), expected_size=(40, 60))


def test_fingerprint_is_json_and_leaves_out_the_number_of_views() -> None:
    fingerprint = augmentation_fingerprint(CONFIG)
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert augmentation_fingerprint(replace(CONFIG, num=4)) == fingerprint
    assert fingerprint["hash"] == {"name": "splitmix64-chain", "version": 1}


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"scales": (80, 64, 96)}, {"max_size": 161}, {"flip": 0.4}]
)
def test_fingerprint_tells_augmentations_apart(change: dict[str, object]) -> None:
    changed = replace(CONFIG, **change)  # type: ignore[arg-type]
    assert augmentation_fingerprint(changed) != augmentation_fingerprint(CONFIG)
