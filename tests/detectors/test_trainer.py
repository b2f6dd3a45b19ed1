"""Plain detectors train, resume and evaluate through the command, on one rank and on two."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.engine import HookBase

from configs.loader import load_config
from dataset.reading import load_annotations
from dataset.scenes import CLASS_NAMES
from dataset.synthetic import SyntheticConfig, write_synthetic
from detectors import Setup, training_images
from detectors.__main__ import main
from detectors.command import register_data
from detectors.images import ImageMapper
from detectors.trainer import Trainer
from tests.fresh import stdout_of
from tests.tiny import DETECTOR


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "data"
    write_synthetic(folder, SyntheticConfig(train=8, val=3, size=64), workers=1)
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:
    model = {**DETECTOR["MODEL"]}
    model["RETINANET"] = {**model["RETINANET"], "NUM_CLASSES": len(CLASS_NAMES)}
    content: dict[str, Any] = {
        **DETECTOR,
        "MODEL": model,
        "DATASET": {"FOLDER": str(data)},
        "DATASETS": {"TRAIN": ["folder_train"], "TEST": ["folder_val"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 96},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2, "WARMUP_ITERS": 0, "CHECKPOINT_PERIOD": 2},
        "SEED": 1,
        "OUTPUT_DIR": str(tmp_path / "output"),
    }
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True)["model"])


def test_training_sees_the_images_asked_for_alone(config: Path, tmp_path: Path) -> None:
    everything = load_config(str(config))
    register_data(everything)
    chosen = sorted(image["image_id"] for image in training_images(Setup(everything)))[::3]
    listed = tmp_path / "images.txt"
    listed.write_text("".join(f"{image_id}\n" for image_id in chosen))
    cfg = load_config(str(config), ["DATASET.IMAGE_LIST", str(listed)])
    batches = iter(Trainer(cfg).build_train_loader(cfg))
    assert {item["image_id"] for _ in chosen for item in next(batches)} == set(chosen)


def test_images_are_left_out_of_training_and_never_of_evaluation(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(data, tmp_path / "data"))
    table = load_annotations(copied / "annotations/instances_train.json").images
    gone, *_, last = table.ids.tolist()
    listed = tmp_path / "out.txt"
    listed.write_text(f"{last}\n{gone}  # missing\n")
    options = ["DATASET.FOLDER", str(copied), "DATASET.EXCLUDE", str(listed)]
    tested = ["DATASETS.TEST", "('folder_train',)"]
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    call = ImageMapper.__call__

    def spy(self: ImageMapper, image: dict[str, Any]) -> dict[str, Any]:
        seen[self.is_train].add(image["image_id"])
        return call(self, image)

    monkeypatch.setattr(ImageMapper, "__call__", spy)
    # An image that is not there is needed for evaluation alone.
    (path,) = copied.rglob(table.file_names[0].rpartition("/")[2])
    pixels = path.read_bytes()
    path.unlink()
    steps = ["SOLVER.MAX_ITER", "6"]
    assert main(["train", "--config-file", str(config), *options, *steps]) == 0
    assert seen[True] == set(table.ids.tolist()) - {gone, last}
    log = (tmp_path / "output/log.txt").read_text()
    assert log.count(f"leaves out 2 of 8 training images: {gone}, {last}\n") == 1
    with pytest.raises(FileNotFoundError, match="1 of 8 images are missing"):
        register_data(load_config(str(config), [*options, *tested]), use=("TEST",))
    path.write_bytes(pixels)
    seen[False].clear()
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth")]
    assert main(["eval", "--config-file", str(config), *options, *tested, *weights]) == 0
    assert seen[False] == set(table.ids.tolist())


def test_training_writes_a_checkpoint_that_evaluation_takes(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config-file", str(config)]) == 0
    final = tmp_path / "output" / "model_final.pth"
    saved = (tmp_path / "output" / "config.yaml").read_text()
    arguments = ["--config-file", str(config), "MODEL.WEIGHTS", str(final)]
    capsys.readouterr()
    assert main(["train", "--eval-only", *arguments]) == 0
    assert "folder_val: AP " in capsys.readouterr().out
    # In a process of its own: the log keeps to the standard output that it began with.
    command = [sys.executable, "-m", "detectors", "eval", "--json", *arguments]
    assert 0 <= json.loads(stdout_of(command))["folder_val"]["AP"] <= 100
    # A config to train from again, whose weights are not those that came out.
    assert (tmp_path / "output" / "config.yaml").read_text() == saved
    apart = ["OUTPUT_DIR", str(tmp_path / "apart")]
    assert main(["eval", *arguments, *apart]) == 0
    assert str(final) in (tmp_path / "apart" / "config.yaml").read_text()


def test_a_resumed_run_goes_on_from_its_checkpoint(config: Path, tmp_path: Path) -> None:
    assert main(["train", "--config-file", str(config)]) == 0
    assert main(["train", "--config-file", str(config), "--resume", "SOLVER.MAX_ITER", "4"]) == 0
    iterations = [
        json.loads(line)["iteration"]
        for line in (tmp_path / "output" / "metrics.json").read_text().splitlines()
        if "loss_cls" in line
    ]
    assert iterations == [1, 3]


def test_a_run_that_trained_other_weights_is_not_resumed(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--config-file", str(config)]
    assert main(command) == 0
    assert main(["train", "--resume", *command[1:], "MODEL.BACKBONE.FREEZE_AT", "2"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the run to resume trained other weights of the model" in said
    assert "had frozen (MODEL.BACKBONE.FREEZE_AT), or start anew in another OUTPUT_DIR" in said


@pytest.mark.parametrize("left", ["last_checkpoint", "metrics.json"])
def test_a_folder_of_another_run_is_resumed_or_refused(
    left: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / left).write_text("")
    assert main(["train", "--config-file", str(config)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: OUTPUT_DIR {tmp_path / 'output'} holds {left} of an earlier")
    assert "--resume" in said
    assert [path.name for path in (tmp_path / "output").iterdir()] == [left]


@pytest.mark.parametrize("grouping", [True, False])
def test_a_resumed_run_has_the_generators_of_its_checkpoint_once_its_loader_runs(
    config: Path, grouping: bool
) -> None:
    keys = ["DATALOADER.ASPECT_RATIO_GROUPING", str(grouping), "DATALOADER.NUM_WORKERS", "1"]
    cfg = load_config(str(config), keys)
    register_data(cfg)
    Trainer(cfg).train()
    final = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)
    saved = final["rank_state"]["ranks"][0]["generators"]["torch"]
    seen: list[torch.Tensor] = []

    class Look(HookBase):
        def after_backward(self) -> None:
            seen.append(torch.get_rng_state())

    resumed = Trainer(load_config(str(config), [*keys, "SOLVER.MAX_ITER", "3"]))
    resumed.resume_or_load(resume=True)
    resumed._trainer.register_hooks([Look()])
    torch.manual_seed(123)
    resumed.train()
    assert len(seen) == 1 and torch.equal(seen[0], saved)


def test_two_ranks_train_one_model_and_end_early_together(config: Path, tmp_path: Path) -> None:
    # In a process of its own, as a user starts it: the ranks are spawned from there.
    command = [sys.executable, "-m", "detectors", "train", "--config-file", str(config)]
    command += ["--num-gpus", "2", "SOLVER.MAX_ITER", "9", "TEST.EVAL_PERIOD", "1"]
    # Nothing is detected: the AP is 0 at all times.
    command += ["TEST.PATIENCE", "1", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.99"]
    stdout_of(command)
    said = (tmp_path / "output" / "log.txt").read_text()
    assert "ended early after iteration 1: folder_val/AP was not better than 0.00 in 1" in said
    state = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    # What each rank keeps for itself is saved for both.
    assert len(state["rank_state"]["ranks"]) == 2
    assert state["iteration"] == 1
    assert not any(name.startswith("module.") for name in state["model"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.WEIGHTS", "nowhere.pth"], "weights not found: nowhere.pth"),
        (["SOLVER.OPTIMIZER", "LION"], "SOLVER.OPTIMIZER: expected one of SGD, ADAMW"),
        (["SOLVER.OPTIMISER", "SGD"], "did you mean SOLVER.OPTIMIZER?"),
    ],
)
def test_a_wrong_setting_is_named(
    config: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config-file", str(config), *overrides]) == 1
    error = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(("split", "workers"), [("train", 0), ("train", 1), ("val", 1)])
def test_an_image_that_cannot_be_read_ends_the_run_in_one_line(
    config: Path,
    data: Path,
    tmp_path: Path,
    split: str,
    workers: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Path(shutil.copytree(data, tmp_path / "own"))
    for path in sorted((own / "images").glob(f"{split}_*"))[1:]:
        path.unlink()
        os.mkfifo(path)
    overrides = ["DATASET.FOLDER", str(own), "DATALOADER.NUM_WORKERS", str(workers)]
    assert main(["train", "--config-file", str(config), *overrides]) == 1
    message = rf"{own}/images/{split}_\S+: is no regular file, but a pipe or device; replace it"
    assert re.fullmatch(f"error: {message}", capsys.readouterr().err.splitlines()[-1])
    log = (tmp_path / "output" / "log.txt").read_text()
    assert "Traceback" not in log
    # Evaluation follows the training, whose weights are saved by then.
    assert bool(re.search(f"Training stopped: {message}", log)) == (split == "train")
    assert (tmp_path / "output" / "model_final.pth").exists() == (split == "val")


def test_an_error_of_our_own_keeps_its_traceback_in_the_log(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "run_step", lambda self: {}["a mistake"])
    with pytest.raises(KeyError):
        main(["train", "--config-file", str(config)])
    assert "KeyError: 'a mistake'" in (tmp_path / "output" / "log.txt").read_text()


def test_adamw_decays_norms_as_configured(config: Path) -> None:
    from configs.loader import load_config
    from detectors.trainer import Trainer

    cfg = load_config(str(config), ["SOLVER.OPTIMIZER", "ADAMW", "SOLVER.WEIGHT_DECAY", "0.3"])
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    groups = Trainer.build_optimizer(cfg, model).param_groups
    assert {group["weight_decay"] for group in groups} == {0.3, cfg.SOLVER.WEIGHT_DECAY_NORM}
