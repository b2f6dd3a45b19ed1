"""The pixels of views."""

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from dataset.views import Augmentation, plan_view, render
from dataset.views.resize import Resize
from tests.dataset.conftest import pattern, view_of

AUGMENTATION = Augmentation(seed=0, steps=(Resize(scales=(64, 80, 96), max_size=160),))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A 40x60 image, height x width."""
    path = tmp_path / "image.png"
    Image.fromarray(pattern(40, 60)).save(path)
    return path


def test_unscaled_pixels_and_their_checksum_are_the_image(image: Path) -> None:
    rendered = render(image, view_of(40, 60))
    assert rendered.pixels.dtype == np.uint8
    assert (rendered.pixels == pattern(40, 60)).all()
    # Of the bytes of the pattern, RGB, rows first; worked out bit by bit by other code.
    assert rendered.crc32c == 0x2BD7AD1A
    assert rendered.pixels.flags.c_contiguous and rendered.pixels.flags.writeable


def test_flip_mirrors_and_changes_the_checksum(image: Path) -> None:
    plain = render(image, view_of(40, 60))
    flipped = render(image, view_of(40, 60, flip=True))
    assert (flipped.pixels == plain.pixels[:, ::-1]).all()
    assert flipped.pixels.flags.c_contiguous
    assert flipped.crc32c == google_crc32c.value(flipped.pixels.tobytes()) != plain.crc32c


def test_a_sample_has_the_middle_of_every_part(image: Path) -> None:
    rendered = render(image, view_of(40, 60))
    sample = rendered.sample(16)
    rows, columns = [1, 3, 6, 8], [1, 5, 9, 13]
    assert (sample[:4, :4] == rendered.pixels[rows][:, columns]).all()
    assert (sample[15, 15] == rendered.pixels[38, 58]).all()
    tiny = render(image, view_of(3, 2))
    assert tiny.sample(16).shape == (16, 16, 3)


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_follow_the_pixels_and_come_back(tmp_path: Path, flip: bool) -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[8:24, 10:40] = 255
    Image.fromarray(pixels).save(tmp_path / "box.png")
    rendered = render(tmp_path / "box.png", view_of(80, 120, flip=flip))
    stored = np.array([[10.0, 8.0, 40.0, 24.0]])
    box = rendered.transforms.apply_box(stored)[0]
    bright = rendered.pixels[..., 0] > 127
    columns, rows = np.flatnonzero(bright.any(axis=0)), np.flatnonzero(bright.any(axis=1))
    assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert box.tolist() == ([40, 16, 100, 48] if flip else [20, 16, 80, 48])
    assert rendered.transforms.inverse().apply_box(box).tolist() == stored.tolist()


def test_resizing_is_that_of_detectron2(image: Path) -> None:
    from detectron2.data.detection_utils import read_image
    from detectron2.data.transforms import AugInput, ResizeShortestEdge

    view = plan_view(AUGMENTATION, image_id=3, view=0, height=40, width=60)
    rendered = render(image, view)
    augmented = AugInput(read_image(str(image), format="RGB"))
    ResizeShortestEdge([min(view.height, view.width)], 160, "choice")(augmented)
    assert (rendered.pixels == augmented.image).all()


def test_pixels_are_the_same_in_another_process_with_other_threads(
    other_process: dict[str, Any],
) -> None:
    view = view_of(77, 115, flip=True)
    here = render(other_process["image"], view)
    assert other_process["crc32c"] == here.crc32c


def test_exif_rotation_comes_first(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.png"
    Image.fromarray(pattern(40, 60)).save(turned, exif=exif)
    rendered = render(turned, view_of(60, 40, stored=(60, 40)))
    assert (rendered.pixels == np.rot90(pattern(40, 60), k=-1)).all()
    with pytest.raises(ValueError, match=r"expected 40x60 .* found 60x40"):
        render(turned, view_of(40, 60))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    Image.fromarray(pattern(40, 60)).convert(mode).save(tmp_path / "image.png")
    rendered = render(tmp_path / "image.png", view_of(40, 60))
    assert rendered.pixels.shape == (40, 60, 3)


def test_render_names_the_file_and_both_sizes_when_the_image_changed(image: Path) -> None:
    message = rf"{image}: expected 41x60 pixels .* found 40x60; the image or the annotations"
    with pytest.raises(ValueError, match=message):
        render(image, view_of(41, 60, stored=(41, 60)))


def test_render_refuses_a_truncated_image(tmp_path: Path, image: Path) -> None:
    cut = tmp_path / "cut.jpg"
    Image.fromarray(pattern(40, 60)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"{cut}: cannot be read as an image \(.*truncated"):
        render(cut, view_of(40, 60))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_render_refuses_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}: cannot be read as an image"):
        render(path, view_of(40, 60))


def test_render_names_a_missing_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png: there is no such image"):
        render(tmp_path / "gone.png", view_of(40, 60))
