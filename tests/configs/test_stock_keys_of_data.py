"""Every key of detectron2's INPUT, DATALOADER and DATASETS, in every stage: it acts, or is refused.

What acts names the test that sees it act.
"""

from pathlib import Path
from typing import Any

import pytest

from configs.loader import load_config
from configs.stock_keys import DISTILL, DUMP, FIDELITY, SHOW, STAGES, refuse_ignored, stock_config
from configs.stock_limits import leaves, value_of
from tests.configs.test_stock_keys import config as config

NODES = ("INPUT", "DATALOADER", "DATASETS")
TESTS = Path(__file__).resolve().parents[1]

IN_DUMP = "stage1_dump/test_stock_keys.py"
IN_STUDENTS = "stage2_distill/test_stock_keys.py"
STUDENTS = (DISTILL, SHOW, FIDELITY)

# Key, another value than detectron2's: refused in every stage.
REFUSED: dict[str, Any] = {
    "INPUT.MIN_SIZE_TRAIN": (480,),
    "INPUT.MAX_SIZE_TRAIN": 1000,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    "INPUT.RANDOM_FLIP": "vertical",
    "INPUT.CROP.ENABLED": True,
    "INPUT.MASK_FORMAT": "bitmask",
    "DATASETS.PROPOSAL_FILES_TRAIN": ("a.pkl",),
    "DATASETS.PROPOSAL_FILES_TEST": ("a.pkl",),
}
# Key: the key that switches on what it sets, off by default, and refused in every stage when on.
OFF: dict[str, tuple[str, Any]] = {
    "INPUT.CROP.TYPE": ("INPUT.CROP.ENABLED", True),
    "INPUT.CROP.SIZE": ("INPUT.CROP.ENABLED", True),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": ("MODEL.LOAD_PROPOSALS", True),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": ("MODEL.LOAD_PROPOSALS", True),
}
# Key: the stages in which it acts, and the test that sees it. The others do nothing that it is
# about: they evaluate nothing, build no batches, or take the teacher's own key.
ACTS: dict[str, dict[tuple[str, ...], str]] = {
    "INPUT.MIN_SIZE_TEST": {(DISTILL,): f"{IN_STUDENTS}::test_evaluation_takes_sets_and_sizes"},
    "INPUT.MAX_SIZE_TEST": {(DISTILL,): f"{IN_STUDENTS}::test_evaluation_takes_sets_and_sizes"},
    "INPUT.FORMAT": {STUDENTS: f"{IN_STUDENTS}::test_the_format_orders_channels"},
    "DATALOADER.NUM_WORKERS": {
        (DISTILL,): f"{IN_STUDENTS}::test_workers_reach_the_loader",
        (DUMP,): f"{IN_DUMP}::test_workers_reach_the_loader",
    },
    "DATALOADER.ASPECT_RATIO_GROUPING": {
        (DISTILL,): f"{IN_STUDENTS}::test_grouping_by_orientation_reaches_the_sampler"
    },
    **{
        f"DATALOADER.{name}": {(DISTILL,): f"{IN_STUDENTS}::test_rare_classes_are_shown_more_often"}
        for name in ("SAMPLER_TRAIN", "REPEAT_THRESHOLD", "REPEAT_SQRT")
    },
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": {
        (DUMP,): f"{IN_DUMP}::test_the_plan_counts_images_without_objects",
        STUDENTS: f"{IN_STUDENTS}::test_images_are_those_of_the_set_with_and_without_objects",
    },
    "DATASETS.TRAIN": {
        STUDENTS: f"{IN_STUDENTS}::test_images_are_those_of_the_set_with_and_without_objects",
        (DUMP,): f"{IN_DUMP}::test_the_plan_is_of_the_set",
    },
    "DATASETS.TEST": {(DISTILL,): f"{IN_STUDENTS}::test_evaluation_takes_sets_and_sizes"},
}
OTHER_VALUES: dict[str, Any] = {
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TEST": 1000,
    "INPUT.FORMAT": "RGB",
    "DATALOADER.NUM_WORKERS": 2,
    "DATALOADER.ASPECT_RATIO_GROUPING": False,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    "DATASETS.TRAIN": ("folder_train", "folder_more"),
    "DATASETS.TEST": ("folder_more",),
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SIZE": [0.5, 0.5],
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.5,
    "DATALOADER.REPEAT_SQRT": False,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 10,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": 10,
}


def test_every_key_has_its_place() -> None:
    cfg = stock_config()
    known = [key for node in NODES for key, _ in leaves(cfg[node], f"{node}.")]
    assert sorted(known) == sorted([*REFUSED, *OFF, *ACTS])
    for key, value in (REFUSED | OTHER_VALUES).items():
        assert value != value_of(cfg, key)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("key", REFUSED)
def test_a_key_without_effect_is_refused(config: Path, key: str, stage: str) -> None:
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(640, 800)"] if key.endswith("SAMPLING") else []
    views = ["VIEWS.SCALES", "(640, 800)"] if sizes else []
    cfg = load_config(str(config), [*sizes, *views, key, str(REFUSED[key])])
    with pytest.raises(ValueError, match=f"{key} is .*, but "):
        refuse_ignored(cfg, stage)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("key", OFF)
def test_what_a_key_sets_is_off_and_cannot_be_switched_on(
    config: Path, key: str, stage: str
) -> None:
    switch, value = OFF[key]
    stated = [key, str(OTHER_VALUES[key])]
    refuse_ignored(load_config(str(config), stated), stage)
    with pytest.raises(ValueError, match=f"{switch} is .*, but "):
        refuse_ignored(load_config(str(config), [*stated, switch, str(value)]), stage)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("key", ACTS)
def test_a_key_that_acts_is_taken(config: Path, key: str, stage: str) -> None:
    refuse_ignored(load_config(str(config), [key, str(OTHER_VALUES[key])]), stage)
    for where in ACTS[key].values():
        file, _, name = where.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text()
