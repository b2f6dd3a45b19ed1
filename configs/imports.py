"""IMPORTS: modules of the user's, imported before anything is built from a config.

They register what is then found by name: backbones, data sets, config nodes. Only what a config or
a command line names is imported; a cache names no code.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from configs.collisions import hidden_by_ours, origin, shadow
from configs.rules import Text

MODULE = Text(
    needed=True,
    pattern=r"(?!.*\.py$)[^\W\d]\w*(\.[^\W\d]\w*)*",
    described="the dotted name of a module, such as my_project.data (no path, no .py)",
)


def import_modules(names: Iterable[str], stated: str = "IMPORTS") -> None:
    """Import modules, looked for in the working directory first, as `python -m` does.

    Args:
        names: dotted names, in this order; what is imported already is not run again.
        stated: where they were named, to begin an error with.

    Raises:
        ValueError: a module is not there, fails while it is imported, or has the name of a package
            of ours; one line.
    """
    for name in names:
        _look_here()
        collision = shadow() or hidden_by_ours(name)
        if collision:
            raise ValueError(f"{stated}: {name}: {collision}")
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise ValueError(f"{stated}: {name}: {_reason(name, error)}") from error


def failure(error: BaseException, folder: Path | None = None) -> str:
    """Say in one line what failed in code of the user's, and where.

    Args:
        error: what it raised.
        folder: the user's; the last line of a file in it is named. None: the last line of all.

    Returns:
        `TypeError: what it says (file:line)`.
    """
    text = " ".join(str(error).split())
    frames = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen")
    ]
    if isinstance(error, SyntaxError) and error.filename:
        frames, text = [(error.filename, error.lineno)], error.msg
    own = [place for place in frames if folder is not None and _is_in(place[0], folder)]
    file, line = (own or frames)[-1]
    return f"{type(error).__name__}: {text} ({file}:{line})"


def _look_here() -> None:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    # A module that was written a moment ago.
    importlib.invalidate_caches()


def _reason(name: str, error: BaseException) -> str:
    top = name.partition(".")[0]
    place = origin(top)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{name}.".startswith(f"{missing}."):
        if place is not None and missing != top:
            return f"cannot be imported: {error}; {top} is {place}, look for it there"
        return (
            f"cannot be imported: {error}; start the command in the folder that holds {top} "
            f"(this is {os.getcwd()}), or put that folder on PYTHONPATH"
        )
    return f"fails while it is imported: {failure(error, place)}; mend it, or leave it out"


def _is_in(file: str, folder: Path) -> bool:
    path = Path(file).resolve()
    return path == folder or folder in path.parents
