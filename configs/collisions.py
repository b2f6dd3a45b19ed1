"""Names of ours that others use too, such as `dataset` and `configs`: said before they mix.

Loaded by its path, before any package of ours is imported by name: it needs the standard library
alone.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What the commands import.
PACKAGES = ("configs", "dataset", "detectors", "stage1_dump", "stage2_distill", "storage")
# What lies beside it.
OTHERS = ("benchmarks", "tests", "tools")


def refuse_shadows() -> None:
    """Refuse to go on where a package of ours would be imported from somewhere else.

    Raises:
        ImportError: names both; for a command, `SystemExit` with the same line.
    """
    text = shadow()
    if not text:
        return
    # So it is while `python -m` looks for its module, where a traceback would say no more.
    if sys.argv[:1] == ["-m"]:
        raise SystemExit(f"error: {text}")
    raise ImportError(text)


def shadow() -> str:
    """Say what hides a package of ours; "" if nothing does."""
    found = {name: origin(name) for name in PACKAGES}
    if any(place is not None and _is_data(place) for place in found.values()):
        # Folders without code, of images or YAML, count as packages only where no other is found.
        # An editable install is asked after them, what is on the path before.
        if str(ROOT) not in sys.path:
            sys.path.append(str(ROOT))
        found = {name: origin(name) for name in PACKAGES}
    for name, place in found.items():
        if place is not None and place != ROOT / name:
            return (
                f"{place} is imported in place of {ROOT / name}, a package of this project with "
                f"the same name; rename yours, or start the command in another folder"
            )
    return ""


def hidden_by_ours(name: str) -> str:
    """Say that a user's module has the name of a package of ours; "" if it has not.

    Args:
        name: a dotted name.
    """
    top = name.partition(".")[0]
    ours = ROOT / top
    if top not in (*PACKAGES, *OTHERS) or origin(top) != ours:
        return ""
    theirs = [
        place
        for entry in sys.path
        for place in (
            Path(entry or ".").resolve() / top,
            Path(entry or ".").resolve() / f"{top}.py",
        )
        if place.exists() and place != ours
    ]
    instead = f" in place of {theirs[0]}" if theirs else ""
    return f"{top} is a package of this project, {ours}, and is imported{instead}; rename yours"


def origin(name: str) -> Path | None:
    """The folder or file that a top-level name is imported from; None if there is none."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module that was put together by hand
        return None
    if spec is None:
        return None
    if spec.origin is None or not spec.has_location:
        places = list(spec.submodule_search_locations or ())
        return Path(places[0]).resolve() if places else None
    file = Path(spec.origin).resolve()
    return file.parent if file.name == "__init__.py" else file


def _is_data(place: Path) -> bool:
    return place.is_dir() and not (place / "__init__.py").exists()
