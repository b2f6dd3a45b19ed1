"""Reading annotation files: what is kept, what is refused, and what the digest sees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset.annotations import annotations_digest, dataset_fingerprint
from dataset.image_files import image_path, require_images
from dataset.reading import load_annotations
from tests.dataset.conftest import write_images

Writer = Callable[[Any], Path]


def test_images_come_sorted_by_id(write_json: Writer, document: dict[str, Any]) -> None:
    table = load_annotations(write_json(document)).images
    assert table.ids.tolist() == [3, 7, 9] and table.ids.dtype == np.int64
    assert table.file_names == ["a.png", "b.png", "sub/c.png"]
    assert table.heights.tolist() == [24, 20, 10]
    assert table.widths.tolist() == [16, 30, 10]


def test_the_first_images_can_be_kept_alone(write_json: Writer, document: dict[str, Any]) -> None:
    table = load_annotations(write_json(document)).images
    assert table.first(2).file_names == ["a.png", "b.png"]
    assert len(table.first(0)) == len(table.first(99)) == 3


@pytest.mark.parametrize(
    "text",
    [
        ' \n{"a":1,"images" :\t[ {"id":1,"file_name":"x \\"]}.png","height":2,"width":3} ],%s } \n',
        '\ufeff{"images":[{"id":1,"file_name":"x \\"]}.png","height":2,"width":3}],"b":{"c":1},%s}',
    ],
)
def test_any_spelling_of_json_is_read(write_json: Writer, text: str) -> None:
    rest = '"annotations":\r\n[],"categories":[{"id":1,"name":"x"} ]'
    assert load_annotations(write_json(text % rest)).images.file_names == ['x "]}.png']


IMAGE = '{"id":1,"file_name":"x","height":2,"width":3}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON at line 1, column 1"),
        ("{", "not valid JSON at line 1, column 2"),
        ('{"images": [' + IMAGE, "not valid JSON .* cut off"),
        ('{"images": [' + IMAGE + ",", "not valid JSON .* cut off"),
        ('{"images": [' + IMAGE + ",]}", "trailing comma"),
        ('{"images": [' + IMAGE + "]} x", "Extra data"),
        ('{"images" [' + IMAGE + "]}", "Expecting ':'"),
        ('{"images": [' + IMAGE + '] "a": 1}', "Expecting ','"),
        ("{1: 2}", "Expecting property name"),
        ('{"images": [' + IMAGE + '], "annotations": [{"id": }]}', "not valid JSON"),
        ("[1, 2]", "are a JSON object .* found a list"),
        ('{"images": [], "images": []}', "section `images` twice"),
        ('{"annotations": []}', "there is no list `images`"),
        ('{"images": {}}', "`images` must be a list, got dict"),
        ('{"images": [], "annotations": [], "categories": []}', "`images` is empty"),
        ('{"images": null}', "`images` must be a list, got nothing"),
        ('{"shapes": [], "imagePath": "x"}', "no list `images` .* holds `shapes`, `imagePath`"),
        ('{"images": [{"id": ' + "1" * 5000 + "}]}", "Exceeds the limit"),
        ('{"images": ' + "[" * 100_000, "nested too deeply|not valid JSON"),
    ],
)
def test_what_is_not_coco_is_refused_with_the_file_named(
    write_json: Writer, text: str, message: str
) -> None:
    path = write_json(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "7"}, r"images\[0\]: `id` must be an integer, got str '7'"),
        ({"id": True}, r"images\[0\]: `id` must be an integer, got bool True"),
        ({"id": 2**63}, r"images\[0\]: `id` must lie in"),
        ({"height": 0}, r"image 7: `height` must lie in \[1, 2147483647\], got 0"),
        ({"width": None}, r"image 7: `width` must be an integer, got nothing"),
        ({"width": 30.5}, r"image 7: `width` must be an integer, got float 30.5"),
        ({"width": "30"}, r"image 7: `width` must be an integer, got str '30'; write 30, without"),
        ({"file_name": ""}, r"image 7: `file_name` must be a name"),
        ({"file_name": 5}, r"image 7: `file_name` must be a name, got int 5"),
        ({"file_name": "../x.png"}, r"image 7: file_name '../x.png' leads out of the image root"),
        ({"id": 3}, r"a\.png: image id 3 is also that of b\.png"),
    ],
)
def test_a_bad_image_is_named(
    write_json: Writer, document: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    document["images"][0].update(change)
    with pytest.raises(ValueError, match=message):
        load_annotations(write_json(document))


def test_an_image_that_is_no_object_is_named(write_json: Writer) -> None:
    with pytest.raises(ValueError, match=r"images\[0\] must be an object, got int 5"):
        load_annotations(write_json({"images": [5]}))


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.json: there is no such annotation file"):
        load_annotations(tmp_path / "gone.json")
    with pytest.raises(ValueError, match="expected an annotation file, found a folder"):
        load_annotations(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xd8\xff\xe0 a JPEG")
    with pytest.raises(ValueError, match=r"binary\.json: not UTF-8 text"):
        load_annotations(tmp_path / "binary.json")


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../../x", "a/..", "..", "C:/x", "\\x", "a\\..\\x", "a\0"]
)
def test_file_names_that_leave_the_root_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leads out of the image root"):
        image_path(tmp_path, name)


@pytest.mark.parametrize("name", ["a.png", "sub/a.png", "..a.png", "a..b/c", "./a.png"])
def test_file_names_under_the_root_are_joined(tmp_path: Path, name: str) -> None:
    assert image_path(tmp_path, name) == f"{tmp_path}/{name}"


def test_missing_images_are_counted_and_named(
    tmp_path: Path, write_json: Writer, document: dict[str, Any]
) -> None:
    table = load_annotations(write_json(document)).images
    root = tmp_path / "images"
    write_images(root, document)
    require_images(table, root)
    (root / "b.png").unlink()
    (root / "sub" / "c.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"2 of 3 images are missing, the first is 'b\.png'"
    ):
        require_images(table, root)
    with pytest.raises(FileNotFoundError, match="3 of 3 images are missing"):
        require_images(table, tmp_path / "gone")


def test_fingerprint_is_the_documented_one(write_json: Writer, document: dict[str, Any]) -> None:
    found = dataset_fingerprint(load_annotations(write_json(document)).images)
    # By sha256sum, of 3<tab>24<tab>16<tab>a.png<NUL>7<tab>20<tab>30<tab>b.png<NUL>9...
    sha256 = "0b714d933f521480c34068633b885a4e1c50dcde154af605df843b372d125a15"
    assert found == {"sha256": sha256, "images": 3}


def test_fingerprint_ignores_order_and_objects(
    write_json: Writer, document: dict[str, Any]
) -> None:
    path = write_json(document)
    fingerprint = dataset_fingerprint(load_annotations(path).images)
    digest = annotations_digest(path)
    document["images"].reverse()
    document["annotations"].pop()
    path = write_json(document)
    assert dataset_fingerprint(load_annotations(path).images) == fingerprint
    # The digest of the file tells that something else in it changed.
    assert annotations_digest(path) != digest


@pytest.mark.parametrize(
    "change", [{"id": 8}, {"file_name": "b.jpg"}, {"height": 21}, {"width": 31}]
)
def test_fingerprint_sees_every_change_of_an_image(
    write_json: Writer, document: dict[str, Any], change: dict[str, Any]
) -> None:
    document["annotations"] = []  # whose image the id would leave behind
    before = dataset_fingerprint(load_annotations(write_json(document)).images)
    document["images"][0].update(change)
    assert dataset_fingerprint(load_annotations(write_json(document)).images) != before
