"""Sets of which only the images are known: written of a folder or a file, read, and refused."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dataset.__main__ import main
from dataset.reading import load_annotations
from dataset.registry import adopt, register_folder
from dataset.unlabeled import write_folder, write_without_labels
from tests.dataset.conftest import Folder

Capture = pytest.CaptureFixture[str]
Writer = Callable[[Any], Path]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, one of them turned by EXIF, and what is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(folder / "b.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 20)).save(folder / "more/a.jpg", exif=turned)
    Image.new("L", (8, 9)).save(folder / "a.bmp")
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_text("none")
    return folder


def test_a_folder_of_images_becomes_a_set(photos: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "mine"
    assert main(["unlabeled", "--images", str(photos), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "left out: " in printed and "notes.txt: cannot be read as an image" in printed
    assert "unlabeled: 3 images" in printed and "hidden" not in printed
    assert f"set DATASET.FOLDER {output}, and DATASETS.UNLABELED" in printed
    register_folder(output)
    images = adopt("folder_unlabeled", labelled=False).images
    assert list(images) == [(1, "a.bmp", 9, 8), (2, "b.png", 20, 30), (3, "more/a.jpg", 30, 20)]
    found = DatasetCatalog.get("folder_unlabeled")
    assert [Path(one["file_name"]).is_file() for one in found] == [True] * 3
    assert main(["unlabeled", "--images", str(photos), "--output", str(output)]) == 1
    assert "is there already" in capsys.readouterr().err


def test_images_may_lie_where_those_of_the_split_belong(photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine/images/unlabeled"
    own.parent.mkdir(parents=True)
    photos.rename(own)
    write_folder(own, tmp_path / "mine", split="unlabeled")
    assert not own.is_symlink() and (own / "b.png").is_file()
    assert register_folder(tmp_path / "mine")["folder_unlabeled"][1] == str(own)


@pytest.mark.parametrize(("is_link", "remedy"), [(True, ", or remove that link"), (False, "")])
def test_only_links_are_said_to_be_removed(
    photos: Path, tmp_path: Path, is_link: bool, remedy: str
) -> None:
    taken = tmp_path / "mine/images/unlabeled"
    taken.parent.mkdir(parents=True)
    if is_link:
        taken.symlink_to(tmp_path)
    else:
        taken.mkdir()
    with pytest.raises(ValueError, match=f"{taken}: is there already; .* --output{remedy}$"):
        write_folder(photos, tmp_path / "mine", split="unlabeled")
    assert not (tmp_path / "mine/annotations").exists()


def test_a_file_with_labels_gives_its_images(make_folder: Folder, tmp_path: Path) -> None:
    source = make_folder("set")
    (file,) = source.glob("annotations/*.json")
    output = tmp_path / "more"
    arguments = ["--annotations", str(file), "--output", str(output), "--split", "half"]
    assert main(["unlabeled", *arguments]) == 0
    written = output / "annotations/instances_half.json"
    ours, theirs = load_annotations(written, labelled=False), load_annotations(file)
    assert list(ours.images) == list(theirs.images)
    assert not len(ours.objects) and ours.categories == theirs.categories
    register_folder(output)
    assert len(DatasetCatalog.get("folder_half")) == len(theirs.images)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "nowhere"], "nowhere: there is no such folder of images"),
        (["--images", "empty"], "empty: expected images, found none"),
        (["--annotations", "nowhere.json"], "nowhere.json"),
        (["--images", "empty", "--split", "a/b"], "split 'a/b': expected a name without /"),
        (["--images", "empty", "--split", ""], "split '': expected a name without /"),
    ],
)
def test_what_gives_no_set_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(["unlabeled", *arguments, "--output", "out"]) == 1
    assert said in capsys.readouterr().err
    assert not Path("out").exists()
    with pytest.raises(SystemExit):
        main(["unlabeled", "--output", "out"])


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"annotations": {}, "categories": []},
        {"annotations": [{"id": 1}], "categories": [{"id": 5}]},
    ],
)
def test_labels_that_are_left_out_may_be_wrong_or_missing(
    write_json: Writer, tmp_path: Path, photos: Path, labels: dict[str, Any]
) -> None:
    images = [{"id": 4, "file_name": "b.png", "height": 20, "width": 30}]
    write_without_labels(
        write_json({"images": images, **labels}), tmp_path / "out", split="all", images=photos
    )
    written = tmp_path / "out/annotations/instances_all.json"
    assert list(load_annotations(written, labelled=False).images) == [(4, "b.png", 20, 30)]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "the list `images` is empty$"),
        ({}, "`images` must be a list, got dict {}$"),
        ([{"id": 4, "file_name": "b.png", "height": 20}], "image 4: `width` must be"),
        ([{"id": 4, "file_name": "/b.png", "height": 20, "width": 30}], "image 4: .* leads out of"),
        ([{"id": 4, "file_name": "b.png", "height": 20, "width": 30}] * 2, "image id 4 is also"),
    ],
)
def test_errors_of_images_are_refused_and_named_alone(
    write_json: Writer, tmp_path: Path, photos: Path, images: Any, said: str
) -> None:
    path = write_json({"images": images}).rename(photos / "images.json")
    for root in (photos, None):
        with pytest.raises(ValueError, match=f"^{path}: .*{said}"):
            write_without_labels(path, tmp_path / "out", split="all", images=root)


@pytest.mark.parametrize("kept", [("annotations", "categories"), ("categories",), ()])
def test_lists_of_labels_may_be_empty_or_missing(
    write_json: Writer, document: dict[str, Any], kept: tuple[str, ...]
) -> None:
    path = write_json({"images": document["images"], **{name: [] for name in kept}})
    annotations = load_annotations(path, labelled=False)
    assert len(annotations.images) == 3 and annotations.warnings() == []
    with pytest.raises(ValueError, match=r"categories|annotations"):
        load_annotations(path)


def test_labels_are_refused_with_the_way_out(write_json: Writer, document: dict[str, Any]) -> None:
    said = r"holds 3 objects, but DATASETS\.UNLABELED .* DATASETS\.TRAIN, or write one without"
    with pytest.raises(ValueError, match=said):
        load_annotations(write_json(document), labelled=False)


def test_a_file_without_images_is_refused_all_the_same(write_json: Writer) -> None:
    for content in ({"categories": []}, {"images": []}):
        with pytest.raises(ValueError, match="`images`"):
            load_annotations(write_json(content), labelled=False)


@pytest.fixture
def function(photos: Path) -> Iterator[str]:
    def images() -> list[dict[str, Any]]:
        return [
            {"file_name": str(photos / "b.png"), "image_id": 4, "height": 20, "width": 30},
            {"file_name": str(photos / "a.bmp"), "image_id": 9, "height": 9, "width": 8},
        ]

    DatasetCatalog.register("test_unlabelled", images)
    yield "test_unlabelled"
    DatasetCatalog.remove("test_unlabelled")
    MetadataCatalog.remove("test_unlabelled")


def test_a_function_may_give_the_images(function: str) -> None:
    assert adopt(function, labelled=False).images.ids.tolist() == [4, 9]
    assert [one["annotations"] for one in DatasetCatalog.get(function)] == [[], []]
