"""What VOC's own rule of AP needs beside a converted folder: `voc/`, links in VOC's layout.

`voc/Annotations/<year>` leads to the XML files, and `voc/ImageSets/Main/<split>.txt` lists
`<year>/<name>`, so that several years are one set. `dataset voc` writes it, evaluation reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from storage.whole import write_whole

# The folder in that of COCO's layout. Not its `annotations`, in other letters: some disks have no
# other letters.
_FOLDER = "voc"
# The year whose AP is the mean precision at 11 recalls; later ones have the area under the curve.
_ELEVEN_POINTS = "VOC2007"


@dataclass(frozen=True, kw_only=True)
class VocLayout:
    """A split in VOC's layout.

    Attributes:
        folder: that of Annotations and ImageSets.
        split: name of the list.
        names: of its images, `<year>/<name>`.
    """

    folder: Path
    split: str
    names: frozenset[str]

    @property
    def has_eleven_points(self) -> bool:
        """Whether it is all of 2007, whose AP is the mean precision at 11 recalls."""
        return {PurePosixPath(name).parent.name for name in self.names} == {_ELEVEN_POINTS}


def annotation_link(output: Path, year: str) -> Path:
    """Where the link to a year's XML files lies."""
    return output / _FOLDER / "Annotations" / year


def write_list(output: Path, split: str, names: Iterable[str]) -> None:
    """Write the list of a split's images, `<year>/<name>` each."""
    path = _list(output, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(f"{name}\n" for name in names))


def layout_of(annotations: Path) -> VocLayout | None:
    """VOC's layout of a split beside its annotation file in COCO's; None where there is none."""
    folder, split = annotations.parent.parent, annotations.stem.removeprefix("instances_")
    path = _list(folder, split)
    if not path.is_file():
        return None
    names = frozenset(path.read_text(encoding="utf-8").split())
    return VocLayout(folder=folder / _FOLDER, split=split, names=names)


def _list(folder: Path, split: str) -> Path:
    return folder / _FOLDER / "ImageSets" / "Main" / f"{split}.txt"
