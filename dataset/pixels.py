"""Reading an image file: one way in for checks, dumps, training and evaluation.

What cannot be taken is refused by name, with the reason and the remedy, and in the same words by
every command.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray
from PIL import Image

_EXIF_ORIENTATION = 0x0112
_EXIF_TURNED = (5, 6, 7, 8)
# Pillow's modes that hold more than a byte a channel; converted to RGB they are clipped, not
# scaled, so that an image comes out all white or all black.
_DEEP_MODES = {"I": "integers of 16 or 32 bit", "F": "floating-point numbers"}
# A raw mode of 16 bit a channel: L, B and N are byte orders. BGR;16 is 16 bit a pixel.
_DEEP_RAW_MODE = re.compile(r"[A-Za-z]+;16[LBN]|SGI16")


class ImageError(ValueError):
    """An image file that cannot be used; `kind` is the word that `dataset check` groups by."""

    # Subclasses take the message alone, as loaders make errors of their workers anew from it.
    kind = "unreadable"


class ImageSizeError(ImageError):
    """The image has another size than its annotations give it."""

    kind = "size"


class ImageDepthError(ImageError):
    """The image has more than 8 bits per channel."""

    kind = "depth"


class ImageTooLargeError(ImageError):
    """The image has more pixels than Pillow reads."""

    kind = "large"


def read_pixels(
    path: str | os.PathLike[str],
    expected_size: tuple[int, int] | None = None,
    image_format: str = "RGB",
) -> NDArray[Any]:
    """Read an image, EXIF rotation applied, as detectron2's `read_image` does.

    Args:
        path: the image file.
        expected_size: (height, width) that the annotations give it, after EXIF rotation; None
            takes any.
        image_format: as detectron2's `INPUT.FORMAT`.

    Returns:
        (H, W, C) uint8 for RGB and BGR; it may be read-only.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: this machine does not let it be read.
        ImageError: it is no image, is damaged, too large or too deep, or has another size.
    """
    from detectron2.data import detection_utils

    name = os.fspath(path)
    with _opened(name) as image:
        stored, orientation = (image.height, image.width), _orientation(image)
        # Its own function, so that the pixels stay those of detectron2's reader.
        turned = detection_utils._apply_exif_orientation(image)
        pixels: NDArray[Any] = detection_utils.convert_PIL_to_numpy(turned, image_format)
    _require_size(name, expected_size, pixels.shape[:2], stored, orientation)
    return pixels


def examine_image(path: str | os.PathLike[str], expected_size: tuple[int, int]) -> None:
    """Refuse what `read_pixels` would refuse, in less time.

    Raises:
        FileNotFoundError, OSError, ImageError: as `read_pixels`.
    """
    name = os.fspath(path)
    with _opened(name) as image:
        stored, orientation = (image.height, image.width), _orientation(image)
        # A JPEG decoded at an eighth of its size is read to its end, but much faster.
        image.draft("RGB", (1, 1))
        image.load()
    _require_size(name, expected_size, _as_shown(stored, orientation), stored, orientation)


def shown_size(
    path: str | os.PathLike[str], stated: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Height and width of an image after EXIF rotation, from the head of its file.

    Args:
        path: the image file.
        stated: (height, width) that the annotations give it. If that is its size before EXIF
            rotation alone, their boxes are of the image as stored, and it is refused.

    Raises:
        FileNotFoundError, OSError, ImageError: as `read_pixels`, as far as the head tells.
    """
    name = os.fspath(path)
    with _opened(name) as image:
        stored, orientation = (image.height, image.width), _orientation(image)
    shown = _as_shown(stored, orientation)
    if stated == stored:
        _require_size(name, stated, shown, stored, orientation)
    return shown


def _as_shown(stored: tuple[int, int], orientation: int) -> tuple[int, int]:
    return stored[::-1] if orientation in _EXIF_TURNED else stored


@contextmanager
def _opened(name: str) -> Iterator[Image.Image]:
    """An image file, opened; what Pillow raises in the block becomes an error with the name."""
    try:
        path = _local_path(name)
        _require_regular(path, name)
        with open(path, "rb") as file, Image.open(file) as image:
            _require_8_bit(image, name)
            yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: there is no such image") from None
    except Image.DecompressionBombError:
        raise ImageTooLargeError(
            f"{name}: has more pixels than the {2 * (Image.MAX_IMAGE_PIXELS or 0)} that Pillow "
            "reads; cut it into tiles"
        ) from None
    except MemoryError:
        raise OSError(f"{name}: there is not enough memory to read it") from None
    # Pillow's decoders signal damage by errors of any kind; by an error number the system does.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise OSError(f"{name}: cannot be read ({error.strerror})") from error
        raise ImageError(
            f"{name}: cannot be read as an image ({error}); replace the file"
        ) from error


def _local_path(name: str) -> str:
    """The file itself; detectron2 fetches what a data set of its user's names by a URL."""
    if "://" not in name:
        return name
    from detectron2.utils.file_io import PathManager

    return str(PathManager.get_local_path(name))


def _require_regular(path: str, name: str) -> None:
    """To open a pipe would wait for its other end for ever."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ImageError(f"{name}: is a folder, not an image; replace it by the image")
    if not stat.S_ISREG(mode):
        raise ImageError(f"{name}: is no regular file, but a pipe or device; replace it")


def _require_8_bit(image: Image.Image, name: str) -> None:
    held = _DEEP_MODES.get(image.mode)
    if image.mode.startswith("I;16") or _DEEP_RAW_MODE.search(str(getattr(image, "tile", ""))):
        held = "16 bits per channel"
    if held:
        raise ImageDepthError(
            f"{name}: holds {held} (mode {image.mode}), expected 8 bits per channel; convert to "
            "8 bit"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none that can be read, as detectron2 has it."""
    try:
        found = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _require_size(
    name: str,
    expected: tuple[int, int] | None,
    found: tuple[int, ...],
    stored: tuple[int, int],
    orientation: int,
) -> None:
    """Args: the file; sizes as (height, width): the annotations', as displayed, as stored."""
    if expected is None or expected == tuple(found):
        return
    cause = "the image or the annotations changed"
    if expected == stored:
        cause = (
            f"that is its size as stored, but its EXIF orientation {orientation} turns it: write "
            "height, width and boxes as displayed, or save the image turned and without EXIF"
        )
    elif expected == tuple(found)[::-1]:
        cause = (
            "height and width are exchanged, in the annotations or because the image was turned "
            "(or lost the EXIF orientation that turned it)"
        )
    raise ImageSizeError(
        f"{name}: expected {expected[0]}x{expected[1]} pixels (height x width, after EXIF "
        f"rotation) from the annotations, found {found[0]}x{found[1]}; {cause}"
    )
