"""Images without labels: what they teach, what they leave alone, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage

from configs.loader import load_config
from dataset.__main__ import main as dataset_main
from dataset.synthetic import SyntheticConfig, write_synthetic
from detectors.__main__ import main as detectors_main
from stage1_dump.__main__ import main as dump_main
from stage1_dump.dump import run as dump
from stage2_distill import methods
from stage2_distill.__main__ import main
from stage2_distill.trainer import DistillTrainer
from storage import CacheReader
from tests.stage2_distill.methods.test_in_training import TEACHERS, WRITERS, write_homes
from tests.stage2_distill.runs import build, losses_of, train, train_until

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]
STEP = 2**48
# But for `pseudo`, which makes labels.
LOSSES = [name for name in methods._METHODS if name != "pseudo"]
NODES: dict[str, Any] = {
    "DATASETS": {"TRAIN": ["folder_train"], "UNLABELED": ["folder_unlabeled"], "TEST": []},
    # One padded size, and no statistics of a batch: what is beside an image changes nothing of it.
    "VIEWS": {"SCALES": [64], "MAX_SIZE": 64, "NUM": 2, "SEED": 11},
    "SOLVER": {"IMS_PER_BATCH": 4, "MAX_ITER": 2, "BASE_LR": 1e-5},
    "DISTILL": {"METHODS": LOSSES},
    "FRS": {"RAMP_ITERS": 2},
    "CWD": {"TEMPERATURE": 300.0},
    "FGD": {"TEMPERATURE": 20.0},
}
WITHOUT = {"DATASETS": {**NODES["DATASETS"], "UNLABELED": []}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The splits `train` and `val`, halves of one set, and `unlabeled`, the images of `val`."""
    folder = tmp_path_factory.mktemp("halves")
    write_synthetic(folder / "whole", SyntheticConfig(train=12, val=1, size=90), workers=1)
    whole = str(folder / "whole/annotations/instances_train.json")
    half = ["--annotations", whole, "--output", str(folder / "data")]
    assert dataset_main(["split", *half, "--val", "0.5"]) == 0
    val = str(folder / "data/annotations/instances_val.json")
    arguments = ["--annotations", val, "--output", str(folder / "data")]
    assert dataset_main(["unlabeled", *arguments]) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def homes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each family a teacher, and its cache `exact` of images with and without labels."""
    return write_homes(data, tmp_path_factory, **NODES)


def frozen(family: str) -> dict[str, Any]:
    """A student's MODEL without statistics of a batch."""
    model = TEACHERS[family]["MODEL"]
    return {**model, "RESNETS": {**model["RESNETS"], "NORM": "FrozenBN"}}


@pytest.fixture
def write(homes: dict[str, Path], tmp_path: Path) -> Write:
    def made(family: str = "RetinaNet", **nodes: Any) -> Path:
        return WRITERS[family](homes[family], tmp_path, "exact", **{**NODES, **nodes})

    return made


def losses_of_batch(trainer: DistillTrainer, batch: list[dict[str, Any]]) -> dict[str, float]:
    torch.manual_seed(3)
    with EventStorage(start_iter=2):
        return {name: float(one.detach()) for name, one in trainer.distiller(batch).items()}


def own(losses: dict[str, float]) -> dict[str, float]:
    """The detector's, without those of methods."""
    return {
        name: value for name, value in losses.items() if name.split("_")[1] not in methods._METHODS
    }


@pytest.mark.parametrize("source", ["cache", "live"])
@pytest.mark.parametrize("family", list(TEACHERS))
def test_the_detector_s_losses_are_those_of_the_labelled_images_alone(
    write: Write, family: str, source: str
) -> None:
    path = write(family, TEACHER={"SOURCE": source, "BATCH": 1}, MODEL=frozen(family))
    # One for each: a detector's running averages move with every step.
    trainer, other = build(path), build(path)
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    assert [item["unlabelled"] for item in batch] == [False, False, True, True]
    assert not any(len(item["instances"]) for item in batch[2:])
    both, labelled = losses_of_batch(trainer, batch), losses_of_batch(other, batch[:2])
    assert len(own(both)) >= 2
    assert own(both) == pytest.approx(own(labelled), rel=1e-6)
    # Every method learns from all of them.
    same = [one for one in both.keys() - own(both).keys() if both[one] == labelled[one]]
    assert not same


@pytest.mark.parametrize("family", list(TEACHERS))
def test_a_stopped_run_goes_on_as_it_would_have(write: Write, family: str, tmp_path: Path) -> None:
    methods = {"METHODS": ["gid", "mgd", "fgd"]}
    path = write(family, SOLVER={**NODES["SOLVER"], "CHECKPOINT_PERIOD": 2}, DISTILL=methods)
    steps = ["SOLVER.MAX_ITER", 4]
    whole = losses_of(train(path, *steps))
    stopped = [*steps, "OUTPUT_DIR", tmp_path / "stopped"]
    train_until(path, 2, *stopped)
    rest = losses_of(train(path, *stopped, resume=True))
    assert rest == {name: values[2:] for name, values in whole.items()}


def test_the_labelled_images_of_a_step_are_those_of_a_run_without_the_others(write: Write) -> None:
    with_others = build(write())
    alone = build(write(**WITHOUT, SOLVER={**NODES["SOLVER"], "IMS_PER_BATCH": 2}))
    for ours, theirs in zip(
        islice(with_others._data.sampler, 20), islice(alone._data.sampler, 20), strict=True
    ):
        assert ours[:2] == theirs and all(draw.position >= 7 for draw in ours[2:])


def test_one_cache_serves_trainings_with_and_without_them(write: Write, homes: Any) -> None:
    reader = CacheReader(homes["RetinaNet"] / "exact")
    stated = reader.manifest.dataset["sets"]
    assert [(one["name"], one["images"]) for one in stated] == [
        ("folder_train", 7),
        ("folder_unlabeled", 5),
    ]
    assert sum(one >= STEP for one in set(reader.index.image_id.tolist())) == 5
    assert losses_of(train(write(**WITHOUT)))
    # The same images under another name, and with labels.
    named = {"DATASETS": {**WITHOUT["DATASETS"], "TRAIN": ["folder_train", "folder_val"]}}
    assert losses_of(train(write(**named)))


def test_a_cache_without_them_is_refused(write: Write, tmp_path: Path) -> None:
    cache = {"CACHE": {"LOCATION": str(tmp_path / "labelled"), "PRESET": "exact"}}
    dump(load_config(str(write(**WITHOUT, **cache))))
    with pytest.raises(ValueError, match=r"data sets: cached .*, config folder_train, folder_unl"):
        build(write(**cache))


def test_the_plan_counts_them(write: Write, capsys: Capture) -> None:
    assert dump_main(["plan", "--config-file", str(write())]) == 0
    printed = capsys.readouterr().out
    assert "12 images x 2 views" in printed
    assert "unlabelled: 5 images (DATASETS.UNLABELED)" in printed
    assert "without objects" not in printed


def test_fgd_takes_the_teacher_s_detections_for_boxes(write: Write) -> None:
    trainer = build(write(DISTILL={"METHODS": ["fgd"]}))
    (fgd,) = trainer.distiller.methods
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    shown = []
    fgd.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    for score in (0.4, 0.6):
        for item in batch:
            item["detections"] = torch.full_like(item["detections"], -1.0)
            item["detections"][0] = torch.tensor([4.0, 8.0, 40.0, 50.0, score, 1.0])
        losses_of_batch(trainer, batch)
    of_unsure, of_sure = (step.objects_or_detections for step in shown)
    boxes, valid = of_sure
    assert of_unsure[1].sum() == sum(len(item["instances"]) for item in batch)
    assert valid[2:].sum() == 2 and valid[:2].sum() == of_unsure[1].sum()
    assert boxes[2:][valid[2:]].tolist() == [[4.0, 8.0, 40.0, 50.0]] * 2


def test_pseudo_makes_labels_of_detections(write: Write) -> None:
    trainer = build(write(DISTILL={"METHODS": ["pseudo"]}))
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    for item in batch:
        item["detections"] = torch.full_like(item["detections"], -1.0)
    batch[2]["detections"][0] = torch.tensor([4.0, 8.0, 40.0, 50.0, 0.9, 1.0])
    seen: list[Any] = []
    step = trainer.setup.family.training_step

    def spy(model: Any, outputs: Any, targets: Any, **given: Any) -> Any:
        seen.append((len(outputs.logits), [one.gt_boxes.tensor.tolist() for one in targets]))
        return step(model, outputs, targets, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer.setup.family), "training_step", lambda _, *a, **k: spy(*a, **k))
        losses_of_batch(trainer, batch)
    ((images, targets),) = seen
    assert images == 4 and targets[2:] == [[[4.0, 8.0, 40.0, 50.0]], []]


def test_parts_of_a_step_all_have_labelled_images(write: Write) -> None:
    trainer = build(write(), "SOLVER.ACCUMULATE", 2)
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    assert [item["unlabelled"] for item in batch] == [False, True, False, True]
    assert losses_of(train(write(), "SOLVER.ACCUMULATE", 2, "SOLVER.MAX_ITER", 1))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["TEACHER.SOURCE", "none"], "TEACHER.SOURCE is none, and without a teacher nothing"),
        (["DISTILL.UNLABELED_SHARE", "0.9"], "0.9 of SOLVER.IMS_PER_BATCH 4 is 4 images; expected"),
        (["DISTILL.UNLABELED_SHARE", "0.1"], "0.1 of SOLVER.IMS_PER_BATCH 4 is 0 images; expected"),
        (["DISTILL.UNLABELED_SHARE", "0.75", "SOLVER.ACCUMULATE", "2"], "expected 1 to 2, since"),
        (["GID.BOXES", "ground_truth"], "GID.BOXES is 'ground_truth', which asks for ground truth"),
        (["GID.MODE", "pos"], "GID.MODE is 'pos', which asks for ground truth"),
        (
            ["DATASETS.UNLABELED", "('folder_val',)"],
            "instances_val.json: holds 17 objects, but DATASETS.UNLABELED is of images without; "
            "name the set in DATASETS.TRAIN, or write one without them: python -m dataset unlab",
        ),
        (["DATASETS.UNLABELED", "('folder_none',)"], "no dataset 'folder_none' is registered"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    write: Write, capsys: Capture, tmp_path: Path, overrides: list[str], said: str
) -> None:
    assert main(["train", "--config-file", str(write()), *overrides]) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]
    if "DATASETS.UNLABELED" in overrides:
        assert dump_main(["plan", "--config-file", str(write()), *overrides]) == 1
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_plain_training_refuses_them(write: Write, capsys: Capture) -> None:
    assert detectors_main(["train", "--config-file", str(write())]) == 1
    assert "DATASETS.UNLABELED is ('folder_unlabeled',), but" in capsys.readouterr().err


def test_images_may_be_left_out(write: Write, tmp_path: Path) -> None:
    listed = tmp_path / "out.txt"
    known = CacheReader(build(write()).cfg.CACHE.LOCATION).index.image_id
    first = sorted(one for one in set(known.tolist()) if one >= STEP)[0]
    listed.write_text(f"{first}\n")
    trainer = build(write(), "DATASET.EXCLUDE", listed)
    drawn = {draw.position for batch in islice(trainer._data.sampler, 20) for draw in batch}
    assert drawn == set(range(7 + 4))
    # A list of both is taken by a training without the second set.
    assert build(write(**WITHOUT), "DATASET.EXCLUDE", listed)
    labelled = tmp_path / "in.txt"
    labelled.write_text("".join(f"{one}\n" for one in set(known.tolist()) if one < STEP))
    with pytest.raises(ValueError, match=r"^DATASETS\.UNLABELED .*: no image to train on is among"):
        build(write(), "DATASET.IMAGE_LIST", labelled)
