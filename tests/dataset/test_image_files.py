"""From file names to files: which spellings are followed, and what is said of a missing one."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from dataset.image_files import ImageFolder, image_path, require_images
from dataset.tables import ImageTable


def table(*names: str) -> ImageTable:
    size = np.ones(len(names), dtype=np.int32)
    return ImageTable(ids=np.arange(len(names)), file_names=list(names), heights=size, widths=size)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`set/images/`, empty."""
    root = tmp_path / "set" / "images"
    root.mkdir(parents=True)
    return root


def add(root: Path, name: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("a.jpg", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("sub/a.jpg", "sub/a.jpg"),
        ("sub\\a.jpg", "sub/a.jpg"),
        ("sub\\a.jpg", "sub\\a.jpg"),  # where a file has that very name
        (".\\sub\\a.jpg", "sub/a.jpg"),
        ("images/a.jpg", "a.jpg"),
        ("images\\a.jpg", "a.jpg"),
        ("./images/a.jpg", "a.jpg"),
        ("set/images/sub/a.jpg", "sub/a.jpg"),
        ("images/a.jpg", "images/a.jpg"),  # a folder in the root before the root itself
        ("{root}/a.jpg", "a.jpg"),
        ("{root}/sub//a.jpg", "sub/a.jpg"),
        ("a%20b.jpg", "a%20b.jpg"),
    ],
)
def test_a_name_is_followed_in_every_spelling(root: Path, name: str, there: str) -> None:
    name = name.format(root=root)
    path = add(root, there)
    if (there, name) == ("images/a.jpg", "images/a.jpg"):
        add(root, "a.jpg")
    for found in (ImageFolder(root).find(name), image_path(root, name)):
        assert found is not None and Path(found).resolve() == path
    (found,) = require_images(table(name), root)
    assert Path(found).resolve() == path


def test_an_absolute_name_may_lie_behind_a_link(root: Path, tmp_path: Path) -> None:
    add(root, "a.jpg")
    (tmp_path / "link").symlink_to(root)
    assert ImageFolder(tmp_path / "link").find(f"{root}/a.jpg") is not None
    assert ImageFolder(tmp_path / "link").find(f"{tmp_path}/link/a.jpg") is not None


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "{root}/../a.jpg", "{root}2/a.jpg", "{root}", "images/../../a.jpg", "C:\\a.jpg",
     "\\\\server\\a.jpg", "..\\a.jpg", "images\\..\\..\\a.jpg"],
)  # fmt: skip
def test_no_name_leads_out_of_the_root(root: Path, name: str) -> None:
    add(root.parent, "a.jpg")
    add(root.parent, "images2/a.jpg")
    for find in (ImageFolder(root).find, lambda name: image_path(root, name)):
        with pytest.raises(ValueError, match="leads out of the image root"):
            find(name.format(root=root))


COMPOSED = unicodedata.normalize("NFC", "café.jpg")
DECOMPOSED = unicodedata.normalize("NFD", "café.jpg")


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [
        ("a.jpg", "a.JPG", "'a.JPG' is there, which differs in letter case: write that"),
        ("sub/a.jpg", "Sub/A.jpg", "'Sub/A.jpg' is there, which differs in letter case"),
        ("a b.jpg", "a%20b.jpg", "which differs in percent-encoding"),
        ("a%20b.jpg", "a b.jpg", "'a b.jpg' is there, which differs in percent-encoding"),
        ("sub%2Fa.jpg", "sub/a.jpg", ""),
        (COMPOSED, DECOMPOSED, "which is another Unicode form of it"),
        (DECOMPOSED, COMPOSED, "which is another Unicode form of it"),
        ("caf%C3%A9.JPG", DECOMPOSED, "which is another spelling of it"),
        ("a.jpg", "a.jpeg", "'a.jpeg' is there, which has another ending"),
        ("upload/4/a.jpg", "a.jpg", "'a.jpg' is there, which lies in no folder"),
        ("a.jpg", "b.jpg", ""),
    ],
)
def test_a_missing_image_names_what_is_near(root: Path, name: str, there: str, said: str) -> None:
    add(root, there)
    add(root, "other.jpg")
    assert said in ImageFolder(root).hint(name) and bool(said) == bool(ImageFolder(root).hint(name))
    with pytest.raises(FileNotFoundError, match="1 of 2 images are missing, the first is") as error:
        require_images(table("other.jpg", name), root)
    assert said in str(error.value)
