"""Pascal VOC's layout in COCO's: boxes, difficult objects, years, and what is refused where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data.datasets import load_voc_instances
from detectron2.data.datasets.pascal_voc import CLASS_NAMES as STOCK_CLASSES
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dataset.__main__ import main
from dataset.checking import examine
from dataset.forms import coco_ground_truth, dataset_dicts
from dataset.reading import load_annotations
from dataset.registry import register_folder
from dataset.voc import CLASS_NAMES, write_voc
from dataset.voc_layout import layout_of

HEIGHT, WIDTH = 40, 60
Objects = list[tuple[str, tuple[float, ...], int | None]]
DOG: Objects = [("dog", (1, 1, 60, 40), 0)]
CAT_AND_PERSON: Objects = [("cat", (8, 12, 35.5, 30), 0), ("person", (3, 4, 3, 4), None)]


def xml(name: str, objects: Objects, size: str | None = None) -> str:
    """An annotation file as VOC2007 has them."""
    if size is None:
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    lines = ["<annotation>", f"\t<filename>{name}.jpg</filename>", f"\t{size}"]
    for label, box, difficult in objects:
        marks = "<pose>Left</pose><truncated>1</truncated>"
        marks += "" if difficult is None else f"<difficult>{difficult}</difficult>"
        corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        inner = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
        lines += ["\t<object>", f"\t\t<name>{label}</name>{marks}", f"\t\t<bndbox>{inner}</bndbox>"]
        # Parts of a person have names and boxes too.
        lines += ["\t\t<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"]
        lines += ["\t</object>"]
    return "\n".join([*lines, "</annotation>\n"])


def make(root: Path, year: str, sets: dict[str, dict[str, Objects]]) -> Path:
    """Write a year: split to images to objects."""
    folder = root / year
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    for split, images in sets.items():
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{n}\n" for n in images))
        for name, objects in images.items():
            (folder / "Annotations" / f"{name}.xml").write_text(xml(name, objects))
            pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
    return folder


@pytest.fixture
def voc2007(tmp_path: Path) -> Path:
    train: dict[str, Objects] = {"000007": DOG}
    val: dict[str, Objects] = {"000005": CAT_AND_PERSON}
    sets = {"train": train, "val": val, "trainval": val | train, "test": {"000001": DOG}}
    return make(tmp_path, "VOC2007", sets)


@pytest.fixture
def voc2012(tmp_path: Path) -> Path:
    images: dict[str, Objects] = {"2008_000002": CAT_AND_PERSON, "2008_000003": DOG}
    return make(tmp_path, "VOC2012", {"trainval": images})


def read(folder: Path, split: str) -> dict[str, Any]:
    path = folder / "annotations" / f"instances_{split}.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The error of a command that fails: one line."""
    assert main(["voc", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_boxes_classes_and_sizes_are_those_of_detectron2_s_loader(
    voc2007: Path, tmp_path: Path
) -> None:
    write_voc([voc2007], tmp_path / "out")
    theirs = load_voc_instances(str(voc2007), "trainval", STOCK_CLASSES)
    file, root = register_folder(tmp_path / "out")["folder_trainval"]
    ours = dataset_dicts(load_annotations(file, root), root)
    by_file = {Path(one["file_name"]).name: one for one in ours}
    assert by_file.keys() == {Path(one["file_name"]).name for one in theirs}
    for one in theirs:
        found = by_file[Path(one["file_name"]).name]
        assert (found["height"], found["width"]) == (one["height"], one["width"])
        assert len(found["annotations"]) == len(one["annotations"])
        for a, b in zip(found["annotations"], one["annotations"], strict=True):
            assert BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) == b["bbox"]
            assert a["category_id"] == b["category_id"]
    assert CLASS_NAMES == STOCK_CLASSES
    assert examine(file, root, workers=1).count("error") == 0


def test_a_box_of_the_whole_image_covers_it(voc2007: Path, tmp_path: Path) -> None:
    write_voc([voc2007], tmp_path / "out", splits=["test"])
    (one,) = read(tmp_path / "out", "test")["annotations"]
    assert (one["bbox"], one["area"]) == ([0, 0, WIDTH, HEIGHT], WIDTH * HEIGHT)


def test_years_come_together_with_ids_of_their_own(
    voc2007: Path, voc2012: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    done = write_voc([voc2007, voc2012], target, splits=["trainval", "test"])
    assert [one.years for one in done.splits] == [("VOC2007", "VOC2012"), ("VOC2007",)]
    found = read(target, "trainval")
    assert [(one["id"], one["file_name"]) for one in found["images"]] == [
        (2, "VOC2007/000005.jpg"),
        (3, "VOC2007/000007.jpg"),
        (4, "VOC2012/2008_000002.jpg"),
        (5, "VOC2012/2008_000003.jpg"),
    ]
    assert len(found["categories"]) == 20
    registered = register_folder(target)
    assert registered.keys() == {"folder_trainval", "folder_test"}
    for file, root in registered.values():
        assert examine(file, root, workers=1).count("error") == 0
    assert all(path.is_symlink() for path in (target / "images").iterdir())


def test_ids_do_not_depend_on_the_splits_and_splits_are_added(
    voc2007: Path, voc2012: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    write_voc([voc2007, voc2012], tmp_path / "both")
    write_voc([voc2007, voc2012], target, splits=["trainval"])
    write_voc([voc2007], target, splits=["test"])
    for split in ("trainval", "test"):
        assert read(target, split) == read(tmp_path / "both", split)
    error = command(capsys, "--input", voc2007, "--output", target)
    assert "instances_trainval.json: is there already" in error
    assert not (target / "annotations" / "instances_train.json").exists()


def ap50(difficult: int, detections: list[list[float]], folder: Path) -> float:
    """AP50 of cats: one cat that is found beside another object, and detections of that one."""
    objects: Objects = [("cat", (1, 1, 20, 20), 0), ("cat", (31, 11, 50, 30), difficult)]
    write_voc([make(folder, "VOC2007", {"test": {"000001": objects}})], folder / "out")
    annotations = load_annotations(folder / "out" / "annotations" / "instances_test.json")
    truth = COCO()
    truth.dataset = coco_ground_truth(annotations)
    truth.createIndex()
    boxes = [([0.0, 0.0, 20.0, 20.0], 0.5), *((box, 0.9) for box in detections)]
    found = truth.loadRes(
        [{"image_id": 1, "category_id": 8, "bbox": box, "score": score} for box, score in boxes]
    )
    judge = COCOeval(truth, found, "bbox")
    judge.params.catIds = [8]
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return float(judge.stats[1])


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_difficult_object_is_neither_right_nor_missed_nor_wrong(
    tmp_path: Path, times: int
) -> None:
    its_box, elsewhere = [30.0, 10.0, 20.0, 20.0], [30.0, 0.0, 5.0, 5.0]
    assert ap50(1, [its_box] * times, tmp_path) == pytest.approx(1)
    # As an object it would be missed; what lies elsewhere is wrong in any case.
    assert ap50(0, [], tmp_path / "other") < 0.6
    assert ap50(1, [elsewhere], tmp_path / "third") == pytest.approx(0.5)


def test_difficult_objects_are_crowds_for_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects: Objects = [("cat", (1, 1, 20, 20), 0), ("dog", (31, 11, 50, 30), 1)]
    folder = make(tmp_path, "VOC2007", {"trainval": {"000001": objects}})
    assert main(["voc", "--input", str(folder), "--output", str(tmp_path / "out")]) == 0
    said, last = capsys.readouterr().out.splitlines()
    assert said.startswith("trainval: 1 images of VOC2007, 2 objects, 1 of them difficult")
    assert last == f"set DATASET.FOLDER {tmp_path / 'out'}, and NUM_CLASSES 20"
    path = tmp_path / "out" / "annotations" / "instances_trainval.json"
    (image,) = dataset_dicts(load_annotations(path), tmp_path)
    assert [one["iscrowd"] for one in image["annotations"]] == [0, 1]


@pytest.mark.parametrize(
    ("options", "classes"),
    [(["--classes"], ["cat", "dog", "person"]), (["--classes", *["person", "dog", "cat"]], None)],
)
def test_other_classes_are_named_or_found(
    voc2007: Path, tmp_path: Path, options: list[str], classes: list[str] | None
) -> None:
    arguments = ["--input", str(voc2007), "--output", str(tmp_path / "out"), *options]
    assert main(["voc", *arguments]) == 0
    found = read(tmp_path / "out", "trainval")
    names = [one["name"] for one in found["categories"]]
    assert names == (classes or options[1:])
    meant = [names[one["category_id"] - 1] for one in found["annotations"]]
    assert sorted(meant) == ["cat", "dog", "person"]


BOMB = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]>\n<annotation>&c;</annotation>'
FILE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>\n<annotation>&b;</annotation>'
SIZED = "<size><width>{}</width><height>{}</height></size>"
PUG: Objects = [("pug", (1, 1, 2, 2), 0)]
TURNED: Objects = [("dog", (9, 1, 2, 2), 0)]


@pytest.mark.parametrize(
    ("text", "line", "refused"),
    [
        (BOMB, 1, "expected no document type, got <!DOCTYPE>, which may declare entities"),
        (FILE, 1, "expected no document type"),
        ("<annotation>\n&b;</annotation>", 2, "expected XML, got an error (undefined entity)"),
        ("<annotation>\n", 2, "expected XML, got an error (no element found); mend the file"),
        ("", 1, "expected XML"),
        ('<?xml version="1.0" encoding="GBK"?><a/>', 1, "(multi-byte encodings are not supported)"),
        ("<html/>", 1, "expected <annotation>, got <html>"),
        (xml("000005", PUG), 4, "expected an object of a class among aeroplane, bicycle, bird, "),
        (xml("000005", DOG).replace("dog", ""), 4, "expected <name> in <object>, got none"),
        (xml("000005", DOG).replace("bndbox", "box"), 4, "expected <bndbox> in <object>"),
        (xml("000005", TURNED), 6, "expected xmin <= xmax and ymin <= ymax, got 9, 1, 2, 2"),
        (xml("000005", DOG).replace(">60</xmax", ">x</xmax"), 6, "a number in <xmax>, got 'x'"),
        (xml("000005", DOG).replace(">60</xmax", ">nan</xmax"), 6, "a number in <xmax>"),
        (xml("000005", [("dog", (1, 1, 2, 2), 3)]), 4, "expected 0 or 1 in <difficult>, got '3'"),
        (xml("000005", DOG, SIZED.format(600, 400)), 3, "expected 60x40 pixels (width x height)"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(
    voc2007: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    line: int,
    refused: str,
) -> None:
    path = voc2007 / "Annotations" / "000005.xml"
    path.write_text(text)
    error = command(capsys, "--input", voc2007, "--output", tmp_path / "out")
    assert f"{path}:{line}: " in error and refused in error
    assert not (tmp_path / "out").exists()


def test_a_list_of_images_may_be_as_windows_writes_it(voc2007: Path, tmp_path: Path) -> None:
    listed = voc2007 / "ImageSets" / "Main" / "test.txt"
    listed.write_bytes(b"\xef\xbb\xbf000001\r\n")
    write_voc([voc2007], tmp_path / "out")
    (image,) = read(tmp_path / "out", "test")["images"]
    assert Path(image["file_name"]).stem == "000001"


@pytest.mark.parametrize("size", ["", SIZED.format(0, 0), SIZED.format(HEIGHT, WIDTH)])
def test_a_size_that_is_missing_or_exchanged_is_that_of_the_image(
    voc2007: Path, tmp_path: Path, size: str
) -> None:
    path = voc2007 / "Annotations" / "000001.xml"
    path.write_text(xml("000001", DOG, size))
    (note,) = write_voc([voc2007], tmp_path / "out", splits=["test"]).notes
    assert note.startswith("1 images have no size") and str(path) in note
    (image,) = read(tmp_path / "out", "test")["images"]
    assert (image["height"], image["width"]) == (HEIGHT, WIDTH)


def test_a_size_that_is_exchanged_by_exif_is_refused(
    voc2007: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, path = voc2007 / "JPEGImages/000001.jpg", voc2007 / "Annotations/000001.xml"
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(image, exif=turned)
    error = command(capsys, "--input", voc2007, "--output", tmp_path / "out")
    assert f"{path}:3: {image}: expected {HEIGHT}x{WIDTH} pixels" in error
    assert "that is its size as stored, but its EXIF orientation 6 turns it: write height" in error
    assert not (tmp_path / "out").exists()
    # Boxes as displayed are those of the image that training sees.
    path.write_text(xml("000001", [("dog", (1, 1, HEIGHT, WIDTH), 0)], SIZED.format(HEIGHT, WIDTH)))
    assert write_voc([voc2007], tmp_path / "out", splits=["test"]).notes == ()
    (one,) = read(tmp_path / "out", "test")["images"]
    assert (one["height"], one["width"]) == (WIDTH, HEIGHT)


def test_xml_in_another_encoding_is_read_but_leaves_voc_s_own_rule_out(
    voc2007: Path, tmp_path: Path
) -> None:
    path = voc2007 / "Annotations" / "000001.xml"
    text = xml("000001", DOG).replace("<annotation>", "<annotation><source>é</source>")
    path.write_bytes(f'<?xml version="1.0" encoding="ISO-8859-1"?>{text}'.encode("latin-1"))
    (note,) = write_voc([voc2007], tmp_path / "out", splits=["test"]).notes
    assert "XML in UTF-8" in note and note.endswith(f"{path}:3")
    assert len(read(tmp_path / "out", "test")["annotations"]) == 1
    assert layout_of(tmp_path / "out/annotations/instances_test.json") is None


def test_an_image_of_another_format_is_found_by_its_name(voc2007: Path, tmp_path: Path) -> None:
    images = voc2007 / "JPEGImages"
    Image.open(images / "000001.jpg").save(images / "one.png")
    (images / "000001.jpg").unlink()
    path = voc2007 / "Annotations" / "000001.xml"
    path.write_text(path.read_text().replace("000001.jpg", "C:\\mine\\one.png"))
    write_voc([voc2007], tmp_path / "out", splits=["test"])
    (image,) = read(tmp_path / "out", "test")["images"]
    assert image["file_name"] == "VOC2007/one.png"


def test_missing_files_are_named(
    voc2007: Path, voc2012: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ("--output", tmp_path / "out")
    error = command(capsys, "--input", tmp_path, *target)
    assert f"{tmp_path}: expected a folder Annotations in it" in error
    error = command(capsys, "--input", voc2012, *target, "--splits", "test")
    assert "expected ImageSets/Main/test.txt there or in another --input, found none" in error
    listed = voc2012 / "ImageSets" / "Main" / "test.txt"
    listed.write_text("2008_000009\n")
    error = command(capsys, "--input", voc2012, *target)
    assert f"{listed}:1: expected " in error and "2008_000009.xml, found none" in error
    listed.write_text("2008_000002\n\n2008_000002 1\n")
    error = command(capsys, "--input", voc2012, *target)
    assert f"{listed}:3: expected the name of one more image, got '2008_000002 1'" in error
    listed.write_text("\n")
    error = command(capsys, "--input", voc2012, *target)
    assert "expected images in ImageSets/Main/test.txt, found none" in error
    image = voc2007 / "JPEGImages" / "000001.jpg"
    image.rename(image.with_suffix(".JPG"))
    error = command(capsys, "--input", voc2007, *target)
    assert "expected the image 000001.jpg in " in error and "differs in letter case" in error
    assert not (tmp_path / "out").exists()


def test_names_of_folders_that_are_taken_are_refused(
    voc2007: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make(tmp_path / "other", "VOC2007", {"val": {"000009": DOG}})
    error = command(capsys, "--input", voc2007, other, "--output", tmp_path / "out")
    assert "expected input folders of different names, got two named VOC2007" in error
    named = make(tmp_path, "test", {"test": {"000009": DOG}})
    error = command(capsys, "--input", named, "--output", tmp_path / "out")
    assert "expected an input folder of another name than a split, got test; rename it" in error
    write_voc([voc2007], tmp_path / "out", splits=["test"])
    error = command(capsys, "--input", other, "--output", tmp_path / "out")
    assert "images/VOC2007: is there already" in error and "or remove that link" in error
    images = tmp_path / "own/images/VOC2007"
    images.mkdir(parents=True)
    error = command(capsys, "--input", voc2007, "--output", tmp_path / "own")
    assert error.endswith(f"{images}: is there already; choose another --output\n")


def test_the_folder_has_voc_s_layout_too_where_its_own_rule_can_be_applied(
    voc2007: Path, voc2012: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    arguments = ["voc", "--input", voc2007, voc2012, "--output", target]
    assert main([*map(str, arguments)]) == 0
    found = layout_of(target / "annotations" / "instances_test.json")
    assert found is not None and found.has_eleven_points and found.names == {"VOC2007/000001"}
    # A person without <difficult>, a corner of half a pixel.
    for split in ("val", "trainval"):
        assert layout_of(target / "annotations" / f"instances_{split}.json") is None
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "AP50" in line]
    assert note.startswith("evaluation will have COCO's AP50 alone") and "000005.xml:" in note
    assert (target / "voc/Annotations/VOC2007/000001.xml").is_file()


@pytest.mark.parametrize(
    ("year", "label", "classes", "unlike"),
    [
        ("VOC2012", "cat/kitten", ["cat/kitten"], "the class 'cat/kitten'"),
        ("VOC2012", "cat", ["cat", "a/b"], "the class 'a/b'"),
        ("VOC2012", " dog ", ["dog"], "000001.xml:4"),
        ("VOC 2012", "dog", ["dog"], "000001.xml:3"),
    ],
)
def test_names_that_voc_s_own_rule_does_not_take_leave_it_out(
    tmp_path: Path, year: str, label: str, classes: list[str], unlike: str
) -> None:
    folder = make(tmp_path, year, {"test": {"000001": [(label, (1, 1, 20, 20), 0)]}})
    (note,) = write_voc([folder], tmp_path / "out", classes=classes).notes
    assert note.startswith("evaluation will have COCO's AP50 alone") and note.endswith(unlike)
    assert layout_of(tmp_path / "out/annotations/instances_test.json") is None
