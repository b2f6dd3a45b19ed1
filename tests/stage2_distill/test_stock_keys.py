"""Keys of detectron2's that distillation takes: each is seen to act, with a teacher and without."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.loader import load_config
from detectors import Setup, evaluate, training_images
from detectors.command import register_data
from stage2_distill import data
from stage2_distill.__main__ import main
from stage2_distill.data import ViewDataset
from stage2_distill.sampler import Draw, ViewBatchSampler
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import build, train

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("command", "source"), [("train", "cache"), ("train", "none"), ("show", "cache")]
)
def test_the_student_s_weights_are_read(
    configure: Configure, capsys: Capture, command: str, source: str
) -> None:
    stated = ["TEACHER.SOURCE", source, "MODEL.WEIGHTS", "nowhere.pth"]
    assert main([command, "--config-file", str(configure()), *stated]) == 1
    assert "weights not found: nowhere.pth" in capsys.readouterr().err


def test_the_weights_of_the_file_begin_the_initial_student(
    configure: Configure, capsys: Capture
) -> None:
    path = configure(MODEL={"WEIGHTS": "nowhere.pth"})
    assert main(["fidelity", "--student", "initial", "--config-file", str(path)]) == 1
    assert "weights not found: nowhere.pth" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["cache", "none"])
@pytest.mark.parametrize("grouped", [True, False])
def test_grouping_by_orientation_reaches_the_sampler(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, source: str, grouped: bool
) -> None:
    asked = []

    class Sampler(ViewBatchSampler):
        def __init__(self, *, group_by_aspect: bool, **arguments: Any) -> None:
            asked.append(group_by_aspect)
            super().__init__(group_by_aspect=group_by_aspect, **arguments)

    monkeypatch.setattr(data, "ViewBatchSampler", Sampler)
    build(configure(), "TEACHER.SOURCE", source, "DATALOADER.ASPECT_RATIO_GROUPING", grouped)
    assert asked == [grouped]


class Asked(Exception):
    """Ends a training where what it asks for would be built."""


@pytest.mark.parametrize("source", ["cache", "none"])
@pytest.mark.parametrize("workers", [0, 1])
def test_workers_reach_the_loader(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, source: str, workers: int
) -> None:
    def loader(dataset: Any, *, num_workers: int, **arguments: Any) -> Any:
        raise Asked(num_workers)

    monkeypatch.setattr(data, "DataLoader", loader)
    with pytest.raises(Asked, match=str(workers)):
        build(configure(), "TEACHER.SOURCE", source, "DATALOADER.NUM_WORKERS", workers)


def test_evaluation_takes_sets_and_sizes(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loader(cfg: Any, name: str, *, mapper: Any) -> Any:
        (resize,) = mapper.augmentations.augs
        raise Asked((name, resize.short_edge_length, resize.max_size))

    monkeypatch.setattr(evaluate, "build_detection_test_loader", loader)
    stated = ["INPUT.MIN_SIZE_TEST", 48, "INPUT.MAX_SIZE_TEST", 72, "SOLVER.MAX_ITER", 1]
    with pytest.raises(Asked, match=r"'folder_train', \(48, 48\), 72"):
        train(configure(), *stated, "DATASETS.TEST", "('folder_train',)")


def test_the_format_orders_channels(configure: Configure) -> None:
    shown = []
    for order in ("BGR", "RGB"):
        cfg = load_config(str(configure()), ["INPUT.FORMAT", order, "TEACHER.SOURCE", "none"])
        register_data(cfg)
        setup = Setup(cfg)
        shown.append(ViewDataset(training_images(setup), setup, None)[Draw(position=0, view=0)])
    assert torch.equal(shown[0]["image"], shown[1]["image"].flip(0))
    assert not torch.equal(shown[0]["image"], shown[1]["image"])


def test_images_are_those_of_the_set_with_and_without_objects(
    configure: Configure, folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    (own / "annotations").mkdir(parents=True)
    (own / "images").symlink_to(folder / "data/images")
    document = json.loads((folder / "data/annotations/instances_train.json").read_text())
    gone = document["images"][0]["id"]
    kept = [one for one in document["annotations"] if one["image_id"] != gone]
    (own / "annotations/instances_some.json").write_text(
        json.dumps({**document, "annotations": kept})
    )
    for keeps, number in ((True, 11), (False, 12)):
        stated = ["DATASET.FOLDER", own, "DATASETS.TRAIN", "('folder_some',)"]
        stated += ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", keeps, "DATASETS.TEST", "()"]
        cfg = load_config(str(configure()), [str(one) for one in stated])
        register_data(cfg)
        assert len(training_images(Setup(cfg))) == number


@pytest.mark.parametrize("source", ["cache", "none"])
def test_rare_classes_are_shown_more_often(configure: Configure, source: str) -> None:
    def shown(**loader: Any) -> Counter[int]:
        trainer = build(configure(DATALOADER=loader), "TEACHER.SOURCE", source)
        draws = [draw for batch in islice(trainer._data.sampler, 40) for draw in batch]
        return Counter(draw.position for draw in draws)

    repeats = {"SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "ASPECT_RATIO_GROUPING": False}
    assert set(shown(ASPECT_RATIO_GROUPING=False).values()) == {10}
    assert set(shown(**repeats).values()) == {10}  # a REPEAT_THRESHOLD of 0 repeats nothing
    by_root, by_share = (
        shown(**repeats, REPEAT_THRESHOLD=1.0, REPEAT_SQRT=sqrt) for sqrt in (True, False)
    )
    assert max(by_root.values()) > min(by_root.values())
    assert by_root != by_share
