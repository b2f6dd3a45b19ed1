"""IMPORTS: modules of the user's, imported before anything is built from a config.

They register what is then found by name: backbones, data sets, config nodes. Only what a config or
a command line names is imported; a cache names no code.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from configs.collisions import OTHERS, PACKAGES, ROOT, hidden_by_ours, origin, shadow
from configs.rules import Text

MODULE = Text(
    needed=True,
    pattern=r"(?!.*\.py$)[^\W\d]\w*(\.[^\W\d]\w*)*",
    described="the dotted name of a module, such as my_project.data (no path, no .py)",
)
# Behind the refusal of a name that nobody registered.
OF_YOURS = "(one of yours is known where IMPORTS or --import names its module)"
# Whose code it is that fails.
OURS, LIBRARY, USER = "ours", "library", "user"
# Folders and files of the modules that were named, which may be installed as libraries are.
_IMPORTED: set[Path] = set()
# What a detector is made of, wherever it lies: many install detectron2 from a checkout.
_LIBRARIES = ("detectron2", "fvcore", "iopath", "numpy", "omegaconf", "PIL", "timm", "torch",
              "torchvision")  # fmt: skip
# How the message begins that another process ended with: a data worker, a spawned rank, a pool's.
_FROM_ELSEWHERE = re.compile(r'\s*(Caught \w+ in |-- Process \d+ terminated |"""\s+Traceback)')
_CAUSED = "The above exception was the direct cause of the following exception:"


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
        top = name.partition(".")[0]
        place = origin(top)
        if place is not None and top not in _LIBRARIES:
            _IMPORTED.add(place)
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise ValueError(f"{stated}: {name}: {_reason(name, error)}") from error


def failure(error: BaseException) -> str:
    """Say in one line what failed in code of the user's, and where.

    Args:
        error: what it raised.

    Returns:
        `TypeError: what it says (file:line)`; the line is the user's where one of the user's files
        was running, else the last one of all.
    """
    text = " ".join(str(error).split())
    last_calls = next(_tracebacks(error))
    places = [place for place in last_calls if not place[0].startswith("<frozen")]
    if isinstance(error, SyntaxError) and error.filename:
        places, text = [(error.filename, error.lineno or 0)], error.msg
    own = [place for place in places if owner_of(place[0]) == USER]
    last = "".join(f" ({file}:{line})" for file, line in (own or places)[-1:])
    return f"{type(error).__name__}: {text}{last}"


def users_place(error: BaseException) -> str:
    """The `file:line` of the user's code that an error, or its cause, comes from.

    What a library raises comes from whoever called it.

    Returns:
        "" where the code that failed is ours.
    """
    for places in _tracebacks(error):
        callers = [place for place in places if owner_of(place[0]) != LIBRARY]
        if callers and owner_of(callers[-1][0]) == USER:
            return "{}:{}".format(*callers[-1])
    return ""


def is_from_elsewhere(error: BaseException) -> bool:
    """Whether an error is that of another process, with its traceback in the message."""
    text = str(error)
    return _FROM_ELSEWHERE.match(text) is not None and "Traceback" in text


def _tracebacks(error: BaseException) -> Iterator[list[tuple[str, int]]]:
    """File and line of every call that led to an error; then of those that led to its causes."""
    found: BaseException | None = error
    while found is not None:
        if is_from_elsewhere(found):
            for told in reversed(str(found).split(_CAUSED)):
                calls = re.findall(r'File "(.+)", line (\d+)', told.rpartition("Traceback")[2])
                yield [(file, int(line)) for file, line in calls]
        else:
            known = traceback.extract_tb(found.__traceback__)
            yield [(call.filename, call.lineno or 0) for call in known]
        found = found.__cause__


def owner_of(file: str) -> str:
    """Whose a file is, by where it lies: OURS, LIBRARY or USER."""
    path = Path(file).resolve()
    if any(_is_in(path, ROOT / name) for name in (*PACKAGES, *OTHERS)):
        return OURS
    if any(_is_in(path, place) for place in _IMPORTED):
        return USER
    is_library = (
        file.startswith("<")  # made while it runs, as dataclasses are
        or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        or any(_is_in(path, place) for place in _libraries())
    )
    return LIBRARY if is_library else USER


def _libraries() -> Iterator[Path]:
    """Where Python's own modules lie, and `_LIBRARIES`."""
    yield Path(sysconfig.get_path("stdlib")).resolve()
    for name in _LIBRARIES:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            yield Path(file).resolve().parent


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
    return f"fails while it is imported: {failure(error)}; mend it, or leave it out"


def _is_in(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents
