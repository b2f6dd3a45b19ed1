"""The commands: exit codes, what they print, and what they leave unimported."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dataset.__main__ import main
from tests.dataset.conftest import Folder
from tests.fresh import stdout_of


def test_synthetic_writes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["synthetic", "--output", str(tmp_path / "set"), "--size", "32"]
    arguments += ["--train", "2", "--val", "1"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("wrote 2 training and 1 validation images")
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("already there: 2 training")


def test_a_failure_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").write_text("")
    assert main(["synthetic", "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"python -m dataset: {tmp_path}: is not empty")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["synthetic"],
        ["synthetic", "--output", "x", "--train", "0"],
        ["coco", "--output", "x", "--split", "test2017"],
        ["coco", "--output", "x", "--mirror", "ftp://host/"],
        ["coco", "--output", "x", "--mirror", "https://me:secret@host/"],
        ["check", "--images", "x"],
        ["check", "--images", "x", "--annotations", "y", "--workers", "0"],
    ],
)
def test_wrong_use_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "secret" not in capsys.readouterr().err


def test_check_passes_a_sound_folder(
    make_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder("set")
    assert main(_check_arguments(folder)) == 0
    summary = "3 images (1 without objects), 3 objects, 2 categories: 0 errors, 0 warnings\n"
    assert capsys.readouterr().out == summary


def test_check_fails_and_names_the_image(
    make_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder("set")
    (folder / "images" / "b.png").unlink()
    assert main(_check_arguments(folder)) == 1
    first, summary = capsys.readouterr().out.splitlines()
    assert first.startswith("error: b.png: there is no ")
    assert summary.endswith("1 errors, 0 warnings")
    assert main([*_check_arguments(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["errors"], found["problems"][0]["image"]) == (1, "b.png")


def test_warnings_alone_pass(make_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder("set")
    path = folder / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace("[1, 1, 5, 5]", "[1, 1, 5, 0]"))
    assert main(_check_arguments(folder)) == 0
    assert capsys.readouterr().out.startswith("warning: a.png: annotation 3")


def _check_arguments(folder: Path) -> list[str]:
    annotations = folder / "annotations" / "instances_train.json"
    return ["check", "--images", str(folder / "images"), "--annotations", str(annotations)]


def test_no_command_waits_for_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from dataset.__main__ import main\n"
        "import dataset.annotations, dataset.checking, dataset.download, dataset.views\n"
        "import dataset.registry, dataset.synthetic\n"
        "main(['synthetic', '--output', sys.argv[1], '--train', '1', '--val', '1'])\n"
        "print([name for name in ('torch', 'detectron2') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "set")]
    assert stdout_of(command).splitlines()[-1] == "[]"


def test_long_phases_report_without_a_terminal(
    make_folder: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("storage.progress.LINE_EVERY_SEC", 0.0)
    monkeypatch.setattr("dataset.coco_json._CHARACTERS_A_STEP", 1)
    assert main(["synthetic", "--output", str(tmp_path / "s"), "--train", "2", "--val", "1"]) == 0
    assert "images: 3 of 3 images, " in capsys.readouterr().err
    assert main(_check_arguments(make_folder("set"))) == 0
    reported = capsys.readouterr().err
    assert "reading instances_train.json: " in reported and "images: 3 of 3 images, " in reported


def test_ctrl_c_is_one_line_and_the_exit_code_of_a_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dataset.synthetic.write_synthetic", interrupt)
    assert main(["synthetic", "--output", str(tmp_path / "s")]) == 130
    said = "interrupted; run the command again to continue"
    assert capsys.readouterr().err == f"python -m dataset: {said}\n"


def test_show_draws_views_with_their_boxes(
    make_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views = {
        "SCALES": [], "MAX_SIZE": 0, "SCALE_RANGE": [0.5, 2.0], "FIXED_SIZE": [32, 48],
        "BRIGHTNESS": [0.5, 2.0], "PLAIN": [1],
    }  # fmt: skip
    content = {
        "VERSION": 2, "VIEWS": views, "DATASET": {"FOLDER": str(make_folder("set"))},
        "MODEL": {"META_ARCHITECTURE": "RetinaNet"}, "DATASETS": {"TRAIN": ["folder_train"]},
    }  # fmt: skip
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(content))
    sheet = tmp_path / "sheets" / "views.png"
    arguments = ["show", "--output", str(sheet), "--views", "3", "--config-file", str(config)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"wrote 3 views of 2 images to {sheet}\n"
    with Image.open(sheet) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
        # A row for each image with objects, a column for each view; 3 wide views, 2 titles.
        assert 1.5 < drawn.width / drawn.height < 2.25
    green = (pixels == [0, 158, 115]).all(axis=1)
    assert green.sum() > 50
    one = [*arguments[:3], "--image-id", "7", *arguments[3:]]
    assert main(one) == 0
    assert capsys.readouterr().out == f"wrote 3 views of 1 images to {sheet}\n"
    one[4] = "99"
    assert main(one) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--image-id 99: not among the 2 images to train on" in line
    assert main([*arguments, "INPUT.CROP.ENABLED", "True"]) == 1
    assert "INPUT.CROP.ENABLED is True, but views are cropped by" in capsys.readouterr().err
