"""Pascal VOC's layout as a folder in COCO's.

Objects marked `difficult` become crowds: training leaves these out, and COCO's evaluation takes
what is found in one neither for right nor for wrong, nor what is not found for missed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from configs.wording import listed
from dataset.coco_json import write_json
from dataset.image_files import ImageFolder
from dataset.layouts import new_places, refuse_other
from dataset.pixels import ImageSizeError, shown_size
from dataset.voc_layout import annotation_link, write_list
from dataset.voc_xml import VocAnnotation, VocObject, read_voc
from storage.progress import Progress

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
SPLITS = ("train", "val", "trainval", "test")
_SHOWN_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class Written:
    """A split that was written.

    Attributes:
        name: of the split.
        years: names of the input folders that have it.
        num_images, num_objects, num_difficult: what is in it; difficult objects are objects.
    """

    name: str
    years: tuple[str, ...]
    num_images: int
    num_objects: int
    num_difficult: int


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written.

    Attributes:
        splits: in the order that was asked for.
        classes: names, by category id from 1.
        notes: a line for what was mended.
    """

    splits: tuple[Written, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Image:
    """One image: year and name, its entry in `images`, and its annotation file as read."""

    name: str
    entry: dict[str, Any]
    annotation: VocAnnotation

    @property
    def is_mended(self) -> bool:
        return self.annotation.size != (self.entry["height"], self.entry["width"])

    @property
    def unofficial(self) -> str:
        """The place for which VOC's own rule cannot be applied; "" where it can."""
        is_named_alike = self.entry["file_name"].rpartition(".")[0] == self.name
        # detectron2 parts what it notes of an image at spaces.
        is_one_word = len(self.name.split()) == 1
        if not (is_named_alike and is_one_word and self.annotation.is_utf8):
            return self.annotation.place
        objects = self.annotation.objects
        return next((one.place for one in objects if not one.is_official), "")


class _Year:
    """One input folder, such as VOC2007.

    Args:
        path: the folder.
        numbers: where image ids come from.
    """

    def __init__(self, path: Path, numbers: Iterator[int]) -> None:
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            if not (path / part).is_dir():
                raise FileNotFoundError(
                    f"{path}: expected a folder {part} in it, found none; name a folder such as "
                    "VOCdevkit/VOC2007"
                )
        self.name = path.name
        self.images = path / "JPEGImages"
        self.annotations = path / "Annotations"
        self._sets = path / "ImageSets" / "Main"
        self._files = frozenset(os.listdir(self.images))
        stems = sorted(one.stem for one in self.annotations.glob("*.xml"))
        self._ids = dict(zip(stems, numbers, strict=False))
        self._read: dict[str, _Image] = {}

    def has(self, split: str) -> bool:
        """Whether there is a list of a split's images."""
        return self._list(split).is_file()

    def names(self, split: str) -> list[str]:
        """The images of a split, in the order of its list."""
        path = self._list(split)
        names: dict[str, int] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
            name = line.strip()
            if name in names or len(name.split()) > 1:
                raise ValueError(
                    f"{path}:{number}: expected the name of one more image, got {name[:40]!r}; "
                    "write each once, one a line"
                )
            if name and name not in self._ids:
                raise FileNotFoundError(
                    f"{path}:{number}: expected {self.annotations / name}.xml, found none; add "
                    "it, or name the splits to write by --splits"
                )
            names.update({name: number} if name else {})
        return list(names)

    def image(self, name: str) -> _Image:
        """Read one image's annotations, or take what was read of it."""
        if name not in self._read:
            annotation = read_voc(self.annotations / f"{name}.xml")
            path = self._find(name, annotation)
            height, width = _size(path, annotation)
            entry = {
                "id": self._ids[name],
                "file_name": f"{self.name}/{path.name}",
                "height": height,
                "width": width,
            }
            self._read[name] = _Image(
                name=f"{self.name}/{name}", entry=entry, annotation=annotation
            )
        return self._read[name]

    def _list(self, split: str) -> Path:
        return self._sets / f"{split}.txt"

    def _find(self, name: str, annotation: VocAnnotation) -> Path:
        """The image file: VOC's own is named as the annotations are, others as they say."""
        for one in (f"{name}.jpg", annotation.file_name):
            if one in self._files:
                return self.images / one
        hint = ImageFolder(self.images).hint(f"{name}.jpg")
        raise FileNotFoundError(
            f"{annotation.place}: expected the image {name}.jpg in {self.images}, found none"
            f"{hint}; add it, or write its name into <filename>"
        )


def write_voc(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    splits: Sequence[str] = (),
    classes: Sequence[str] | None = CLASS_NAMES,
) -> Converted:
    """Write a folder in COCO's layout from folders in Pascal VOC's, several years in one.

    A split has the images of every year that has it. Images are not copied: `images/<year>` links
    to them. Their ids count all annotation files, year by year and by name, so that they do not
    depend on the splits that are written.

    Args:
        inputs: folders with Annotations, ImageSets/Main and JPEGImages.
        output: the folder to write; it may hold other splits.
        splits: names of lists in ImageSets/Main; of VOC's own all that are there by default.
        classes: names, in the order of their category ids; None takes those found, sorted.

    Raises:
        FileNotFoundError: a folder, a list, an annotation file or an image is missing.
        ValueError: a file cannot be used, with its name and line; an object is of another class;
            or the output holds such a split.
    """
    numbers = count(1)
    years = [_Year(Path(one).absolute(), numbers) for one in inputs]
    chosen = _chosen(years, splits)
    links = _links(Path(output), years, chosen)
    root = Path(output) / "images"
    places = {split: new_places(Path(output), split, root)[0] for split in chosen}
    # Before anything is written.
    read = {split: list(_images(split, having)) for split, having in chosen.items()}
    images = [image for many in read.values() for image in many]
    names = _classes(images, classes)
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    for split, path in places.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _document(read[split], names))
        if not _unofficial(read[split], names):
            write_list(Path(output), split, [image.name for image in read[split]])
    written = (_written(split, having, read[split]) for split, having in chosen.items())
    return Converted(splits=tuple(written), classes=names, notes=tuple(_notes(images, names)))


def _links(output: Path, years: Sequence[_Year], splits: Collection[str]) -> dict[Path, Path]:
    """Links to make, to the folders that they lead to; those that are there are left out."""
    found: dict[Path, Path] = {}
    for year in years:
        # The images of a split are looked for in images/<split> first.
        if year.name in splits:
            raise ValueError(
                f"{year.images.parent}: expected an input folder of another name than a split, got "
                f"{year.name}; rename it"
            )
        links = {
            output / "images" / year.name: year.images,
            annotation_link(output, year.name): year.annotations,
        }
        if links.keys() & found.keys():
            raise ValueError(
                f"{year.images.parent}: expected input folders of different names, got two named "
                f"{year.name}; rename one"
            )
        for link, target in links.items():
            refuse_other(link, target)
        found |= links
    return {link: target for link, target in found.items() if not os.path.lexists(link)}


def _chosen(years: Sequence[_Year], splits: Sequence[str]) -> dict[str, list[_Year]]:
    """Split to the years that have it."""
    found = {split: [year for year in years if year.has(split)] for split in splits or SPLITS}
    lacking = [split for split, having in found.items() if not having]
    if lacking and (splits or len(lacking) == len(found)):
        raise FileNotFoundError(
            f"{years[0].images.parent}: expected ImageSets/Main/{lacking[0]}.txt there or in "
            "another --input, found none; name by --splits the lists that there are"
        )
    return {split: having for split, having in found.items() if having}


def _images(split: str, years: Sequence[_Year]) -> Iterator[_Image]:
    named = [(year, name) for year in years for name in year.names(split)]
    if not named:
        raise ValueError(
            f"{years[0].images.parent}: expected images in ImageSets/Main/{split}.txt, found none; "
            "leave it out by --splits"
        )
    with Progress(split, total=len(named), unit="images") as progress:
        for year, name in progress.over(named):
            yield year.image(name)


def _size(path: Path, annotation: VocAnnotation) -> tuple[int, int]:
    """Height and width of the image itself; where the annotations exchange the two, it decides.

    Not where EXIF exchanges them: then the boxes are those of the image unturned.
    """
    try:
        size = shown_size(path, annotation.size)
    except ImageSizeError as error:
        raise ValueError(f"{annotation.place}: {error}") from error
    if annotation.size not in (None, size, size[::-1]):
        height, width = annotation.size
        raise ValueError(
            f"{annotation.place}: expected {size[1]}x{size[0]} pixels (width x height), the size "
            f"of {path}, got {width}x{height}; write size and boxes of that image"
        )
    return size


def _classes(images: Sequence[_Image], classes: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes; refuse an object of another one."""
    objects = [one for image in images for one in image.annotation.objects]
    if classes is None:
        return tuple(sorted({one.name for one in objects}))
    known = frozenset(classes)
    for one in objects:
        if one.name not in known:
            shown = listed(classes, shown=_SHOWN_NAMES)
            raise ValueError(
                f"{one.place}: expected an object of a class among {shown}, got {one.name!r}; "
                "--classes names others, or without names takes those found"
            )
    return tuple(dict.fromkeys(classes))


def _document(images: Sequence[_Image], classes: Sequence[str]) -> dict[str, Any]:
    numbers = {name: number for number, name in enumerate(classes, 1)}
    objects = [(image.entry["id"], one) for image in images for one in image.annotation.objects]
    return {
        "images": [image.entry for image in images],
        "annotations": [
            {"id": number, "image_id": image_id, **_element(one, numbers[one.name])}
            for number, (image_id, one) in enumerate(objects, 1)
        ],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }


def _element(one: VocObject, category_id: int) -> dict[str, Any]:
    return {
        "category_id": category_id,
        "bbox": list(one.box_xywh_abs),
        "area": one.box_xywh_abs[2] * one.box_xywh_abs[3],
        "iscrowd": int(one.is_difficult),
        "difficult": int(one.is_difficult),
    }


def _written(split: str, years: Sequence[_Year], images: Sequence[_Image]) -> Written:
    objects = [one for image in images for one in image.annotation.objects]
    return Written(
        name=split,
        years=tuple(year.name for year in years),
        num_images=len(images),
        num_objects=len(objects),
        num_difficult=sum(one.is_difficult for one in objects),
    )


def _unofficial(images: Sequence[_Image], classes: Sequence[str]) -> str:
    """The first class or place for which VOC's own rule cannot be applied; "" where it can."""
    # detectron2 writes a file for each class.
    slashed = (f"the class {name!r}" for name in classes if "/" in name)
    places = (image.unofficial for image in images if image.unofficial)
    return next(slashed, next(places, ""))


def _notes(images: Sequence[_Image], classes: Sequence[str]) -> Iterator[str]:
    mended = {image.annotation.place: image for image in images if image.is_mended}
    if mended:
        yield (
            f"{len(mended)} images have no size in their annotations, or height and width "
            f"exchanged; their own was taken, the first is {next(iter(mended))}"
        )
    unofficial = _unofficial(images, classes)
    if unofficial:
        yield (
            "evaluation will have COCO's AP50 alone, not VOC's: that needs <pose>, <truncated>, "
            "<difficult>, whole pixels, XML in UTF-8, images named as their XML, folders without "
            f"spaces, and classes without / and without spaces around them, unlike {unofficial}"
        )
