"""Where a command may write its results, and which paths detectron2 reads as they are written."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlparse

_AS_URL = (
    "detectron2 takes a path for a URL, and would read {read!r}: {what} without '?', tabs, line "
    "ends, a space at the start, '#' or ';' at the end, or ':'"
)


def refuse_output_dir(place: str) -> None:
    """Refuse an `OUTPUT_DIR`, which need not be there, that can be no folder for a training.

    Raises:
        ValueError: none is named, something else lies there or on the way, or checkpoints in it
            would not be found again.
    """
    if not place:
        raise ValueError("OUTPUT_DIR is empty; expected the folder for results")
    places = (Path(place), *Path(place).parents)
    nearest = next(filter(os.path.lexists, places), Path())
    if not os.path.isdir(nearest):
        kind = "a link that leads nowhere" if nearest.is_symlink() else "no folder"
        raise ValueError(
            f"OUTPUT_DIR {place}: expected a folder, or a place for one, but {nearest} is {kind}; "
            "name another"
        )
    if as_url := why_not_read(os.path.join(place, "model_final.pth"), "name a folder"):
        raise ValueError(f"OUTPUT_DIR {place}: {as_url}")


def without_options(path: str) -> str:
    """What detectron2's checkpointer opens for a path: behind a `?` are options for it."""
    try:
        return urlparse(path)._replace(query="").geturl()
    except ValueError:  # no URL to Python either
        return ""


def why_not_read(path: str, what: str) -> str:
    """Say that detectron2 would open another file for this path, and what to do; "" if not."""
    read = without_options(path)
    return "" if read == path else _AS_URL.format(read=read, what=what)


def refuse_in_cache(option: str, place: str, location: str) -> None:
    """Refuse to write into a cache: the config's, which may not be there yet, or any other.

    Args:
        option: where the place was named, `OUTPUT_DIR` or `--output`.
        place: the file or folder, which need not be there either.
        location: the config's cache; may be empty.

    Raises:
        ValueError: it lies in one.
    """
    from storage.location import Location
    from storage.metadata import first_cache

    whole = Path(os.path.realpath(place))
    around = (whole, *whole.parents)
    own = Path(os.path.realpath(location))
    cache = own if location and own in around else first_cache(map(Location, around))
    if cache is not None:
        raise ValueError(
            f"{option} {place} lies in the cache {cache}: a cache takes what is no part of it "
            "for damage; name a place beside it"
        )
