"""Image files: read as detectron2 reads them, or refused by name with cause and remedy."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.pixels import ImageError, examine_image, read_pixels
from tests.dataset.conftest import pattern

SIZE = (40, 60)
Write = Callable[[Path], None]


def turned(orientation: int, height: int, width: int) -> Write:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return lambda path: Image.fromarray(pattern(height, width)).save(path, "PNG", exif=exif)


def deep(dtype: type, image_format: str) -> Write:
    return lambda path: Image.fromarray(np.ones(SIZE, dtype)).save(path, image_format)


def deep_channels(path: Path) -> None:
    """A PNG of 16 bits per channel, which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes((1 + 6 * SIZE[1]) * SIZE[0]))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def cut(path: Path) -> None:
    Image.fromarray(pattern(*SIZE)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-200])


def unknown_code(path: Path) -> None:
    """A damage that Pillow answers with an error which is neither an OSError nor a ValueError."""
    Image.fromarray(pattern(*SIZE)).save(path, "DDS")
    damaged = bytearray(path.read_bytes())
    damaged[80:84] = b"\x04\0\0\0"  # compressed pixels
    damaged[84:88] = b"none"
    path.write_bytes(damaged)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


REFUSED: dict[str, tuple[Write, str, str]] = {
    "no image": (
        lambda path: path.write_bytes(b"none") and None,
        "unreadable",
        "cannot be read as",
    ),
    "empty": (lambda path: path.touch(), "unreadable", "cannot be read as an image"),
    "cut": (cut, "unreadable", r"cannot be read as an image \(.*truncated.*\); replace the file"),
    "unknown code": (unknown_code, "unreadable", "cannot be read as an image"),
    "folder": (Path.mkdir, "unreadable", "is a folder, not an image"),
    "pipe": (os.mkfifo, "unreadable", "is no regular file"),
    "grey of 16 bit": (deep(np.uint16, "PNG"), "depth", r"16 bits .*\(mode I;16\).*to 8 bit"),
    "TIFF of 16 bit": (deep(np.uint16, "TIFF"), "depth", "16 bits per channel"),
    "TIFF of 32 bit": (deep(np.int32, "TIFF"), "depth", r"16 or 32 bit \(mode I\).*to 8 bit"),
    "TIFF of floats": (deep(np.float32, "TIFF"), "depth", r"floating-point .*\(mode F\).*to 8 bit"),
    "colours of 16 bit": (deep_channels, "depth", r"16 bits per channel \(mode RGB\)"),
    "as stored": (turned(6, *SIZE), "size", "size as stored, but its EXIF orientation 6 turns it"),
    "exchanged": (turned(1, *SIZE[::-1]), "size", "height and width are exchanged"),
    "another size": (
        turned(1, 41, 60),
        "size",
        r"expected 40x60 pixels .* found 41x60; the image or the annotations changed",
    ),
}


@pytest.mark.parametrize("read", [read_pixels, examine_image])
@pytest.mark.parametrize("name", REFUSED)
def test_an_image_that_cannot_be_taken_is_refused_with_cause_and_remedy(
    tmp_path: Path, name: str, read: Callable[..., object]
) -> None:
    write, kind, message = REFUSED[name]
    path = tmp_path / "image"
    write(path)
    with pytest.raises(ImageError, match=f"{path}: .*{message}") as caught:
        read(path, SIZE)
    assert caught.value.kind == kind
    # A loader makes the error of a worker anew, from its class and its text.
    assert type(caught.value)(str(caught.value)).kind == kind


@pytest.mark.parametrize("read", [read_pixels, examine_image])
@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (lambda path: None, FileNotFoundError, "there is no such image"),
        (link_to_itself, OSError, r"cannot be read \(Too many levels of symbolic links\)"),
    ],
)
def test_what_the_system_refuses_is_no_damage(
    tmp_path: Path,
    write: Write,
    error: type[Exception],
    message: str,
    read: Callable[..., object],
) -> None:
    write(tmp_path / "image")
    with pytest.raises(error, match=f"{tmp_path / 'image'}: {message}"):
        read(tmp_path / "image", SIZE)


@pytest.mark.parametrize("read", [read_pixels, examine_image])
def test_an_image_beyond_pillows_limit_is_to_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[..., object]
) -> None:
    turned(1, *SIZE)(tmp_path / "image")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"image: has more pixels than the 2000 .* into tiles"):
        read(tmp_path / "image", SIZE)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_and_rotation_are_those_of_detectron2(
    tmp_path: Path, orientation: int, image_format: str
) -> None:
    from detectron2.data.detection_utils import read_image

    path = tmp_path / "image"
    turned(orientation, *SIZE)(path)
    shown = SIZE if orientation < 5 else SIZE[::-1]
    examine_image(path, shown)
    pixels = read_pixels(path, shown, image_format)
    assert pixels.dtype == np.uint8
    assert (pixels == read_image(str(path), image_format)).all()


def test_exif_that_cannot_be_read_turns_nothing(tmp_path: Path) -> None:
    damaged = b"Exif\0\0none of it"
    Image.fromarray(pattern(*SIZE)).save(tmp_path / "image", "PNG", exif=damaged)
    examine_image(tmp_path / "image", SIZE)
    assert (read_pixels(tmp_path / "image", SIZE) == pattern(*SIZE)).all()


def test_an_image_may_be_named_as_detectron2_names_what_it_fetches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    (tmp_path / "detectron2").mkdir()
    turned(1, *SIZE)(tmp_path / "detectron2" / "a.png")
    assert (read_pixels("detectron2://a.png", SIZE) == pattern(*SIZE)).all()
