"""Every key of detectron2's that a user would set acts in a command, or is refused by its name."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

import detectors.__main__
import stage1_dump.__main__
import stage2_distill.__main__
from configs.loader import default_config, load_config
from configs.nodes import NODES, OWN_NODES
from configs.stock_keys import (
    COMMANDS,
    DISTILL,
    DUMP,
    EVAL,
    FIDELITY,
    HEADS,
    OF_NODES,
    REFUSALS,
    SHOW,
    STAGES,
    TEACHER,
    TRAIN,
    refuse_ignored,
)
from tests.configs.test_stock_keys_of_r_cnn import KEYS as KEYS_OF_R_CNN

Capture = pytest.CaptureFixture[str]
Main = Callable[[list[str]], int]

ROOT = Path(__file__).resolve().parents[2] / "configs"
# Without what is no detector: the parts that configs of all families have in common, and sweeps.
SHIPPED = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.yaml")
    if not path.stem.startswith("common") and path.parent.name != "sweeps"
)

# Every command that takes a config, and what it is called in the table.
STARTED: dict[str, tuple[Main, str]] = {
    TRAIN: (detectors.__main__.main, "train"),
    EVAL: (detectors.__main__.main, "eval"),
    "stage1_dump plan": (stage1_dump.__main__.main, "plan"),
    "stage1_dump run": (stage1_dump.__main__.main, "run"),
    "stage1_dump check": (stage1_dump.__main__.main, "check"),
    DISTILL: (stage2_distill.__main__.main, "train"),
    SHOW: (stage2_distill.__main__.main, "show"),
    FIDELITY: (stage2_distill.__main__.main, "fidelity"),
}
STAGE_COMMANDS = tuple(name for name in STARTED if name.startswith("stage"))
ALL = tuple(STARTED)

# Key, a value that a user would set, where it is refused. In the rest it acts (see below and the
# tests of each command), or it belongs to training and says nothing of what is dumped or shown.
CASES: list[tuple[str, Any, tuple[str, ...]]] = [
    ("MODEL.WEIGHTS", "student.pth", (*ALL[2:5], FIDELITY)),
    ("INPUT.CROP.ENABLED", True, STAGE_COMMANDS),
    ("INPUT.RANDOM_FLIP", "vertical", STAGE_COMMANDS),
    ("INPUT.RANDOM_FLIP", "none", STAGE_COMMANDS),
    ("INPUT.MIN_SIZE_TRAIN", (480, 640), STAGE_COMMANDS),
    ("INPUT.MAX_SIZE_TRAIN", 1000, STAGE_COMMANDS),
    ("INPUT.FORMAT", "L", STAGE_COMMANDS),
    ("INPUT.MASK_FORMAT", "bitmask", STAGE_COMMANDS),
    ("DATASETS.TRAIN", (), (TRAIN, *STAGE_COMMANDS)),
    ("DATASETS.TEST", (), (EVAL,)),
    ("DATASETS.UNLABELED", ("folder_more",), (TRAIN,)),
    ("MODEL.MASK_ON", True, ALL),
    ("MODEL.KEYPOINT_ON", True, ALL),
    ("MODEL.LOAD_PROPOSALS", True, ALL),
    ("DATASETS.PROPOSAL_FILES_TRAIN", ("proposals.pkl",), ALL),
    ("DATASETS.PROPOSAL_FILES_TEST", ("proposals.pkl",), ALL),
    ("MODEL.ROI_HEADS.NUM_CLASSES", 3, ALL),
    ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.7, ALL),
    ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.7, ALL),
    ("TEST.AUG.ENABLED", True, ALL),
    ("TEST.EXPECTED_RESULTS", [["bbox", "AP", 38.5, 0.2]], ALL),
    ("TEST.KEYPOINT_OKS_SIGMAS", [0.1], ALL),
    ("TEST.PRECISE_BN.ENABLED", True, (DISTILL,)),
    ("VIS_PERIOD", 10, (DISTILL,)),
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config of a student whose data, teacher and cache are not there."""
    content = {
        "VERSION": 2,
        "MODEL": {"META_ARCHITECTURE": "RetinaNet", "DEVICE": "cpu"},
        "DATASETS": {"TRAIN": ["folder_train"], "TEST": ["folder_val"]},
        "DATASET": {"FOLDER": str(tmp_path / "no_data")},
        "TEACHER": {"CONFIG": "teacher.yaml", "WEIGHTS": "teacher.pth"},
        "CACHE": {"LOCATION": str(tmp_path / "no_cache")},
        "OUTPUT_DIR": str(tmp_path / "output"),
    }
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump({"VERSION": 2}))
    path = tmp_path / "student.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def started(command: str, config: Path, *overrides: Any) -> int:
    main, name = STARTED[command]
    return main([name, "--config-file", str(config), *(str(one) for one in overrides)])


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize(("key", "value"), [case[:2] for case in CASES], ids=str)
def test_a_stock_key_is_refused_by_name_where_it_would_be_ignored(
    command: str, key: str, value: Any, config: Path, tmp_path: Path, capsys: Capture
) -> None:
    (refused_in,) = [case[2] for case in CASES if case[:2] == (key, value)]
    if command not in refused_in:
        reader = DUMP if command.startswith(DUMP) else command
        # Started, it would train or fail for its data; here it only must not be refused.
        refuse_ignored(load_config(str(config), [key, str(value)]), reader)
        return

    for source in ("cache", "none"):
        assert started(command, config, key, value, "TEACHER.SOURCE", source) == 1
        (line,) = capsys.readouterr().err.splitlines()
        # With SOURCE none, `show` and `fidelity` may say first that there is nothing to look at.
        if source == "cache" or command not in (SHOW, FIDELITY):
            assert line.startswith(f"error: override: {key} is {value!r}, but ")
    assert not (tmp_path / "output").exists()


def test_a_refusal_names_the_file_and_the_line(config: Path, capsys: Capture) -> None:
    config.write_text(
        config.read_text().replace("MODEL:", "INPUT: {CROP: {ENABLED: true}}\nMODEL:")
    )
    number = config.read_text().splitlines().index("INPUT: {CROP: {ENABLED: true}}") + 1

    assert started(DISTILL, config) == 1

    assert f"error: {config}:{number}: INPUT.CROP.ENABLED is True, but" in capsys.readouterr().err


@pytest.mark.parametrize("command", [SHOW, FIDELITY])
def test_without_a_teacher_there_is_nothing_to_show(
    command: str, config: Path, capsys: Capture
) -> None:
    assert started(command, config, "TEACHER.SOURCE", "none") == 1
    assert "TEACHER.SOURCE is 'none', but without a teacher" in capsys.readouterr().err


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_config_is_refused_anywhere(name: str) -> None:
    cfg = load_config(str(ROOT / name))
    for command in COMMANDS:
        # Plain configs state no views: their augmentation is detectron2's.
        is_plain = "distill" not in name
        if not (is_plain and command in STAGES):
            refuse_ignored(cfg, command)
    refuse_ignored(cfg, TEACHER)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("detector", HEADS)
def test_detectron2_s_defaults_are_refused_nowhere(command: str, detector: str) -> None:
    cfg = default_config()
    cfg.MODEL.META_ARCHITECTURE = detector
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("coco_2017_train",)
    refuse_ignored(cfg, command)


def test_the_weights_that_a_file_states_are_the_student_s_in_every_command(config: Path) -> None:
    config.write_text(config.read_text().replace("DEVICE: cpu", "DEVICE: cpu\n  WEIGHTS: a.pth"))
    for command in COMMANDS:
        refuse_ignored(load_config(str(config)), command)


@pytest.mark.parametrize(
    "overrides",
    [
        ["MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.RETINANET.NUM_CLASSES", "3"],
        ["INPUT.MIN_SIZE_TRAIN", "(480, 640)", "VIEWS.SCALES", "(480, 640)"],
        ["INPUT.MAX_SIZE_TRAIN", "1000", "VIEWS.MAX_SIZE", "1000"],
        ["INPUT.RANDOM_FLIP", "none", "VIEWS.FLIP", "0.0"],
        ["INPUT.RANDOM_FLIP", "vertical", "VIEWS.FLIP", "0.0", "VIEWS.FLIP_VERTICAL", "0.5"],
        ["INPUT.CROP.ENABLED", "True", "VIEWS.CROP", "('relative_range', 0.9, 0.9)"],
    ],
)
def test_a_key_that_says_what_holds_anyway_is_no_fault(config: Path, overrides: list[str]) -> None:
    refuse_ignored(load_config(str(config), overrides), DISTILL)


@pytest.mark.parametrize(
    "overrides",
    [
        ["INPUT.RANDOM_FLIP", "vertical", "VIEWS.FLIP_VERTICAL", "0.5"],
        ["INPUT.RANDOM_FLIP", "none", "VIEWS.FLIP", "0.0", "VIEWS.FLIP_VERTICAL", "0.5"],
        ["INPUT.CROP.ENABLED", "True", "VIEWS.CROP", "('relative_range', 0.9, 0.8)"],
        ["INPUT.CROP.ENABLED", "True", "VIEWS.CROP", "('relative', 0.9, 0.9)"],
    ],
)
def test_a_key_that_says_something_else_than_views_is_refused(
    config: Path, overrides: list[str]
) -> None:
    with pytest.raises(ValueError, match=f"{overrides[0]} is .*, but views are"):
        refuse_ignored(load_config(str(config), overrides), DISTILL)


def test_sizes_of_plain_training_in_a_file_stand_beside_views_that_are_stated(
    config: Path,
) -> None:
    text = config.read_text()
    config.write_text(f"{text}INPUT: {{MIN_SIZE_TRAIN: [96], MAX_SIZE_TRAIN: 128}}\n")
    cfg = load_config(str(config), ["VIEWS.SCALES", "(800,)", "VIEWS.MAX_SIZE", "1333"])
    refuse_ignored(cfg, DUMP)
    with pytest.raises(ValueError, match=r"student\.yaml:\d+: INPUT\.MIN_SIZE_TRAIN is \(96,\)"):
        refuse_ignored(load_config(str(config)), DUMP)


@pytest.mark.parametrize(
    ("views", "iters", "refused"),
    [
        ((1,), 50, ""), ((2,), 50, r"LAST is \(2,\), but .* VIEWS\.NUM 2"),
        ((1,), 51, "LAST_ITERS is 51, but .* 50 iterations"),
    ],
)  # fmt: skip
def test_the_last_views_are_some_of_the_views_in_a_part_of_the_training(
    config: Path, views: tuple[int, ...], iters: int, refused: str
) -> None:
    stated = ["VIEWS.NUM", "2", "SOLVER.MAX_ITER", "50", "SOLVER.STEPS", "()"]
    cfg = load_config(
        str(config), [*stated, "VIEWS.LAST", str(views), "VIEWS.LAST_ITERS", str(iters)]
    )
    refuse_ignored(cfg, DUMP)
    if not refused:
        refuse_ignored(cfg, DISTILL)
        return
    with pytest.raises(ValueError, match=refused):
        refuse_ignored(cfg, DISTILL)


def test_two_stage_detectors_have_heads_of_their_own(config: Path) -> None:
    stated = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.MASK_ON", "True"]
    cfg = load_config(str(config), [*stated, "MODEL.ROI_HEADS.NUM_CLASSES", "3"])
    refuse_ignored(cfg, TRAIN)
    refuse_ignored(cfg, EVAL)


@pytest.mark.parametrize(("key", "value"), [("NESTEROV", True), ("MOMENTUM", 0.5)])
def test_what_adamw_does_not_read_is_refused_with_it_alone(
    config: Path, key: str, value: Any
) -> None:
    stated = [f"SOLVER.{key}", str(value)]
    refuse_ignored(load_config(str(config), stated), DISTILL)
    cfg = load_config(str(config), [*stated, "SOLVER.OPTIMIZER", "ADAMW"])
    with pytest.raises(ValueError, match=rf"SOLVER\.{key} is .*ADAMW"):
        refuse_ignored(cfg, DISTILL)


def test_patience_is_refused_where_nothing_is_evaluated(config: Path) -> None:
    stated = ["TEST.PATIENCE", "2", "TEST.EVAL_PERIOD", "10"]
    refuse_ignored(load_config(str(config), stated), DISTILL)
    cfg = load_config(str(config), [*stated, "DATASETS.TEST", "()"])
    for command in (TRAIN, DISTILL):
        with pytest.raises(ValueError, match=r"PATIENCE is 2, but DATASETS\.TEST is empty"):
            refuse_ignored(cfg, command)
    refuse_ignored(cfg, DUMP)


def test_a_range_of_sizes_is_refused_for_views(config: Path) -> None:
    stated = ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", "(640, 800)"]
    refuse_ignored(load_config(str(config), stated), TRAIN)
    cfg = load_config(str(config), [*stated, "VIEWS.SCALES", "(640, 800)"])
    for command in STAGES:
        with pytest.raises(ValueError, match=r"SAMPLING is 'range', but a view has one of VIEWS"):
            refuse_ignored(cfg, command)


@pytest.mark.parametrize(
    ("detector", "key", "value", "advice"),
    [
        (
            "RetinaNet",
            "FCOS.NUM_CLASSES",
            "3",
            "reads MODEL.RETINANET.NUM_CLASSES, which is 80",
        ),
        ("RetinaNet", "FCOS.CENTER_SAMPLING_RADIUS", "2.0", "has no such setting"),
        (
            "FCOS",
            "ROI_HEADS.NUM_CLASSES",
            "3",
            "reads MODEL.FCOS.NUM_CLASSES, which is 80; set",
        ),
        ("FCOS", "RETINANET.SCORE_THRESH_TEST", "0.1", "reads MODEL.FCOS.SCORE_THRESH_TEST"),
        ("FCOS", "RETINANET.SMOOTH_L1_LOSS_BETA", "0.0", "has no such setting; leave it out"),
        ("FCOS", "ANCHOR_GENERATOR.SIZES", "[[8]]", "has no such setting; leave it out"),
    ],
)
def test_what_another_head_reads_is_refused(
    config: Path, detector: str, key: str, value: str, advice: str
) -> None:
    stated = ["MODEL.META_ARCHITECTURE", detector, f"MODEL.{key}", value]
    for command in COMMANDS:
        with pytest.raises(ValueError, match=rf"MODEL\.{key} is .*, but {detector} {advice}"):
            refuse_ignored(load_config(str(config), stated), command)


def test_fcos_draws_nothing_while_it_trains(config: Path) -> None:
    stated = ["VIS_PERIOD", "10", "MODEL.META_ARCHITECTURE"]
    refuse_ignored(load_config(str(config), [*stated, "RetinaNet"]), TRAIN)
    with pytest.raises(ValueError, match="VIS_PERIOD is 10, but detectron2's FCOS draws nothing"):
        refuse_ignored(load_config(str(config), [*stated, "FCOS"]), TRAIN)


@pytest.mark.parametrize("node", OWN_NODES)
def test_plain_training_refuses_overrides_of_our_nodes_but_dataset(node: str, config: Path) -> None:
    stated = {f"{node}.{item.name.upper()}": item.default for item in fields(NODES[node])}
    pairs = [part for key, value in stated.items() for part in (key, str(value))]
    in_a_file = yaml.safe_load(config.read_text())
    in_a_file[node] = {key.partition(".")[2]: value for key, value in stated.items()}
    both_ways = config.with_name("both.yaml")
    both_ways.write_text(yaml.safe_dump(in_a_file))
    for command in (TRAIN, EVAL):
        refuse_ignored(load_config(str(both_ways)), command)
        if node == "DATASET":
            refuse_ignored(load_config(str(config), pairs), command)
            continue
        way_out = "are those of INPUT; set those" if node == "VIEWS" else "leave it out"
        with pytest.raises(ValueError, match=f"override: {node}.* is .*, but a plain .*{way_out}"):
            refuse_ignored(load_config(str(config), pairs), command)
    assert {one.key for one in OF_NODES if one.key.startswith(f"{node}.")} == (
        set() if node == "DATASET" else set(stated)
    )


@pytest.mark.parametrize("command", [TRAIN, EVAL])
def test_an_override_of_views_ends_a_plain_command_before_it_begins(
    command: str, config: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert started(command, config, "VIEWS.FLIP", "0.0") == 1
    assert "error: override: VIEWS.FLIP is 0.0, but a plain detector" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_every_entry_of_the_table_is_tried() -> None:
    of_heads = tuple(f"MODEL.{node}." for nodes in HEADS.values() for node in nodes)
    others = {
        *(key for key in KEYS_OF_R_CNN if not key.startswith(of_heads)),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING",
        "SOLVER.MOMENTUM",
        "SOLVER.NESTEROV",
        "TEACHER.SOURCE",
        "TEST.PATIENCE",
        "VIEWS.LAST",
        "VIEWS.LAST_ITERS",
    }
    tried = {
        refusal.key
        for refusal in REFUSALS
        if refusal not in OF_NODES and not refusal.key.startswith(of_heads)
    }
    assert tried == {case[0] for case in CASES} | others
