"""Folders and names known to detectron2."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataset.registry import adopt, locate, register_folder
from dataset.unlabeled import write_folder
from tests.dataset.conftest import Folder


@pytest.fixture(autouse=True)
def clean_catalogs() -> Iterator[None]:
    """Leave detectron2's catalogs as they were: they are global."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    yield
    for name in [name for name in DatasetCatalog.list() if name.startswith(("folder_", "test_"))]:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize(
    "images_in", ["images", "images/{split}", "{split}", "{split}/images", "."]
)
def test_every_split_of_a_folder_is_registered(make_folder: Folder, images_in: str) -> None:
    folder = make_folder("set", ("train", "val2017"), images_in)
    found = register_folder(folder)
    assert found == {
        f"folder_{split}": (
            str(folder / "annotations" / f"instances_{split}.json"),
            str(folder / images_in.format(split=split)).removesuffix("/."),
        )
        for split in ("train", "val2017")
    }
    assert locate("folder_val2017") == found["folder_val2017"]


def test_detectron2_loads_a_registered_folder(make_folder: Folder) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    folder = make_folder("set")
    register_folder(folder)
    dicts = DatasetCatalog.get("folder_train")
    # The image without objects is there too: whether it is trained on is the trainer's business.
    assert [d["image_id"] for d in dicts] == [3, 7, 9]
    assert [len(d["annotations"]) for d in dicts] == [1, 2, 0]
    assert dicts[0]["file_name"] == str(folder / "images" / "a.png")
    assert MetadataCatalog.get("folder_train").thing_classes == ["cat", "dog"]


def test_another_folder_replaces_the_first(make_folder: Folder) -> None:
    register_folder(make_folder("one", ("train", "test")))
    second = register_folder(make_folder("two", ("train",)))
    assert locate("folder_train") == second["folder_train"]
    with pytest.raises(ValueError, match=r"no dataset 'folder_test' .* there are: folder_train$"):
        locate("folder_test")


def test_registering_a_folder_again_changes_nothing(make_folder: Folder) -> None:
    folder = make_folder("one")
    assert register_folder(folder) == register_folder(str(folder))


def test_a_relative_folder_stays_found_after_a_change_of_directory(
    make_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder("one")
    monkeypatch.chdir(tmp_path)
    register_folder("one")
    monkeypatch.chdir("/")
    assert locate("folder_train")[1] == str(tmp_path / "one" / "images")


def test_folders_without_what_is_needed_are_refused(tmp_path: Path, make_folder: Folder) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone: there is no such dataset folder"):
        register_folder(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"there is no annotations/instances_<split>\.json"):
        register_folder(tmp_path)
    folder = make_folder("set")
    shutil.rmtree(folder / "images")
    with pytest.raises(FileNotFoundError, match=r"its first image 'b.png' is in none of .*images"):
        register_folder(folder)


def test_the_first_image_may_be_missing(make_folder: Folder) -> None:
    folder = make_folder("set", ("train",), "images/{split}")
    found = register_folder(folder)
    (folder / "images/train/b.png").unlink()
    assert register_folder(folder) == found


@pytest.fixture
def roboflow(make_folder: Folder) -> Path:
    """A folder as Roboflow writes it."""
    folder = make_folder("roboflow", ("train", "valid"), "{split}")
    for split in ("train", "valid"):
        annotations = folder / "annotations" / f"instances_{split}.json"
        annotations.rename(folder / split / "_annotations.coco.json")
    return folder


def test_roboflows_layout_is_read(roboflow: Path) -> None:
    from detectron2.data import DatasetCatalog

    assert register_folder(roboflow) == {
        f"folder_{split}": (
            str(roboflow / split / "_annotations.coco.json"),
            str(roboflow / split),
        )
        for split in ("train", "valid")
    }
    (first, *_) = DatasetCatalog.get("folder_valid")
    assert first["file_name"] == str(roboflow / "valid" / "a.png")
    with pytest.raises(ValueError, match=r"'folder_val' .* did you mean folder_valid"):
        locate("folder_val")


def test_a_split_in_cocos_layout_stands_beside_roboflows(roboflow: Path) -> None:
    for split in ("unlabeled", "train"):
        write_folder(roboflow / "valid", roboflow, split=split)
    assert {name: Path(file).name for name, (file, _) in register_folder(roboflow).items()} == {
        "folder_train": "instances_train.json",
        "folder_unlabeled": "instances_unlabeled.json",
        "folder_valid": "_annotations.coco.json",
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("result.json", r"there is result\.json \(Label Studio's export\): if it is in COCO"),
        ("_annotations.coco.json", r"there is _annotations\.coco\.json \(Roboflow's export with"),
        ("annotations/train.json", r"there is annotations/train\.json: .* move it to annotations"),
        ("data/labels.json", r"there is data/labels\.json \(FiftyOne's export\)"),
    ],
)
def test_annotations_in_another_place_are_named(tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(FileNotFoundError, match=rf"no annotations/instances_<split>\.json.*{said}"):
        register_folder(tmp_path)


def change_names(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    for image in document["images"]:
        image["file_name"] = change(image["file_name"])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("images_in", ["images", "images/train", "train", "media"])
@pytest.mark.parametrize("form", ["{folder}/{name}", "/{folder}/{name}", "{folder}\\{name}"])
def test_names_may_begin_with_the_folder_of_the_images(
    make_folder: Folder, images_in: str, form: str
) -> None:
    from detectron2.data import DatasetCatalog

    folder = make_folder("set", ("train",), images_in)
    root = f"{folder}/{images_in}" if form.startswith("/") else images_in
    change_names(folder, lambda name: form.removeprefix("/").format(folder=root, name=name))
    register_folder(folder)
    images = DatasetCatalog.get("folder_train")
    assert images
    for image in images:
        assert Path(image["file_name"]).is_relative_to(folder / images_in)
        assert Path(image["file_name"]).is_file()


def test_a_first_image_that_is_missing_names_what_is_near(make_folder: Folder) -> None:
    folder = make_folder("set")
    change_names(folder, str.upper)
    with pytest.raises(FileNotFoundError, match=r"'b\.png' is there, which differs in letter case"):
        register_folder(folder)


def test_splits_that_are_not_needed_may_lack_their_images(make_folder: Folder) -> None:
    folder = make_folder("set", ("train", "val"), "images/{split}")
    shutil.rmtree(folder / "images" / "val")
    with pytest.raises(FileNotFoundError, match=r"its first image 'b\.png' is in none of"):
        register_folder(folder)
    assert set(register_folder(folder, needed=["folder_train"])) == {"folder_train", "folder_val"}
    with pytest.raises(FileNotFoundError, match=r"its first image 'b\.png' is in none of"):
        register_folder(folder, needed=["folder_train", "folder_val"])


def test_a_refused_folder_leaves_the_registered_one(make_folder: Folder, tmp_path: Path) -> None:
    found = register_folder(make_folder("set"))
    with pytest.raises(FileNotFoundError):
        register_folder(tmp_path / "gone")
    assert locate("folder_train") == found["folder_train"]


def test_a_file_name_that_leaves_the_root_never_reaches_detectron2(make_folder: Folder) -> None:
    from detectron2.data import DatasetCatalog

    folder = make_folder("set")
    path = folder / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["images"][1]["file_name"] = "/etc/hostname"
    path.write_text(json.dumps(document))
    register_folder(folder)
    with pytest.raises(ValueError, match="image 3: file_name '/etc/hostname' leads out"):
        DatasetCatalog.get("folder_train")


def test_a_dataset_that_detectron2_knows_is_read_by_us(make_folder: Folder) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    folder = make_folder("set")
    path = folder / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    for element in document["annotations"]:
        element.update(segmentation=[[1, 2, 3, 4]], iscrowd=None)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(document).encode())
    register_coco_instances("test_known", {}, str(path), str(folder / "images"))
    assert list(adopt("test_known").categories) == [5, 6]
    assert [len(image["annotations"]) for image in DatasetCatalog.get("test_known")] == [1, 2, 0]
    assert MetadataCatalog.get("test_known").thing_classes == ["cat", "dog"]
    adopt("test_known")
    document["categories"].reverse()
    document["categories"][0]["name"] = "cow"
    path.write_text(json.dumps(document))
    adopt("test_known")
    # The file decides, also where detectron2 knows other classes by that name.
    assert MetadataCatalog.get("test_known").thing_classes == ["cat", "cow"]
    assert locate("test_known") == (str(path), str(folder / "images"))


def test_a_misspelt_name_gets_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"'coco_2017_trian' .* mean coco_2017_train.*--import"):
        locate("coco_2017_trian")


def test_a_dataset_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'voc_2007_train' is not a COCO detection dataset"):
        locate("voc_2007_train")


def test_a_registered_name_without_files_says_where_they_should_be(tmp_path: Path) -> None:
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances("test_gone", {}, str(tmp_path / "x.json"), str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"there is no .*x\.json; set DETECTRON2_DATASETS"):
        locate("test_gone")
    (tmp_path / "x.json").write_text("{}")
    assert locate("test_gone") == (str(tmp_path / "x.json"), str(tmp_path))


def test_detectron2s_own_names_lie_under_its_environment_variable(
    other_process: dict[str, Any],
) -> None:
    coco = other_process["datasets"] / "coco"
    expected = [str(coco / "annotations" / "instances_val2017.json"), str(coco / "val2017")]
    assert other_process["coco_2017_val"] == expected
