"""Folders for results, and paths that detectron2 reads otherwise than they are written."""

from pathlib import Path

import pytest
import torch

from detectors import export_model, weights_path
from detectors.places import refuse_in_cache, refuse_output_dir, why_not_read


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_no_folder_for_results(tmp_path: Path, below: str) -> None:
    file = tmp_path / "notes"
    file.touch()
    with pytest.raises(ValueError, match=f"expected a folder.* but {file} is no folder"):
        refuse_output_dir(str(file / below))


def test_a_folder_for_results_must_be_named() -> None:
    with pytest.raises(ValueError, match="OUTPUT_DIR is empty"):
        refuse_output_dir("")


def test_nor_is_a_link_that_leads_nowhere_or_to_itself(tmp_path: Path) -> None:
    for name, target in (("dangling", "absent"), ("loop", "loop")):
        link = tmp_path / name
        link.symlink_to(target)
        with pytest.raises(ValueError, match=f"OUTPUT_DIR {link}: .* a link that leads nowhere"):
            refuse_output_dir(str(link))


def test_a_cache_behind_links_in_a_loop_is_not_followed(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refuse_in_cache("OUTPUT_DIR", str(tmp_path / "output"), str(loop))


@pytest.mark.parametrize("name", ["run?", "run\t1", "run\n", "Run:1/a", " run", "\x01", "file:a"])
def test_a_folder_whose_checkpoints_would_not_be_found_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"OUTPUT_DIR [\s\S]*detectron2 takes a path for a URL"):
        refuse_output_dir(name)


@pytest.mark.parametrize("name", ["a b", "ü#", "a%20b", "*[x]", "-a", "a:b", "~", "a;", "a\\b"])
def test_other_names_are_read_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refuse_output_dir(name)
    assert why_not_read(str(tmp_path / name / "a.pth"), "") == ""


def test_weights_that_detectron2_would_look_for_elsewhere_are_told_apart_from_absent_ones(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a?b"
    folder.mkdir()
    export_model(torch.nn.Linear(1, 1), folder / "model.pth")
    with pytest.raises(FileNotFoundError, match=r"a\?b/model.pth: detectron2 takes a path for a"):
        weights_path(str(folder / "model.pth"))
    (folder / "model.pth").rename(tmp_path / "model.pth")
    options = f"{tmp_path}/model.pth?matching_heuristics=True"
    assert weights_path(options) == options
