"""Configs load as detectron2 loads them, minus code execution, plus checks a user can act on."""

import os
from pathlib import Path
from typing import Any

import detectron2
import pytest
from detectron2.config import get_cfg

from configs.backbones import BACKBONES
from configs.loader import PATH_KEYS, default_config, load_config, settings, teacher_config
from configs.nodes import NODES, Settings
from configs.rules import Place
from configs.stock_limits import LIMITS, value_of

# A whole number that no float holds.
HUGE = "1" + 400 * "0"
ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\nVERSION: 2\n")
    return str(path)


@pytest.fixture
def empty(tmp_path: Path) -> str:
    return write(tmp_path / "empty.yaml", "")


def test_the_defaults_are_the_nodes_own(empty: str) -> None:
    assert settings(default_config()) == Settings()
    assert settings(load_config(empty)) == Settings()


@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/retinanet_R_101_FPN_3x.yaml",
        "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
        "quick_schedules/retinanet_R_50_FPN_instant_test.yaml",
    ],
)
def test_stock_configs_load_as_detectron2_loads_them(name: str) -> None:
    stock = get_cfg()
    stock.merge_from_file(str(ZOO / name))

    cfg = load_config(str(ZOO / name))

    for name in NODES:
        del cfg[name]
    for name in BACKBONES:
        del cfg.MODEL[name]
    for key in ("OPTIMIZER", "ACCUMULATE", "EMA_DECAY", "PREEMPTION_SIGNAL"):
        del cfg.SOLVER[key]
    del cfg.TEST["PATIENCE"], cfg.DATASETS["UNLABELED"]
    del cfg.SOLVER.AMP["DTYPE"], cfg.MODEL["FAMILY"], cfg.MODEL["FCOS"], cfg["IMPORTS"]
    assert cfg == stock


def test_a_config_of_version_1_is_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("MODEL:\n  WEIGHT: old.pkl\nVIEWS:\n  NUM: 3\nVERSION: 1\n")

    cfg = load_config(str(path))

    assert cfg.VERSION == 2
    assert cfg.MODEL.WEIGHTS == "old.pkl"
    assert cfg.VIEWS.NUM == 3


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    path.write_text("VERSION: 3\n")

    with pytest.raises(ValueError, match="VERSION: expected 0 to 2, got 3"):
        load_config(str(path))


def test_a_file_wins_over_its_base_and_overrides_win_over_both(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "VIEWS: {NUM: 2, SEED: 2, FLIP: 0.25}")
    leaf = write(tmp_path / "sub" / "leaf.yaml", "_BASE_: ../base.yaml\nVIEWS: {NUM: 3, SEED: 3}")

    views = settings(load_config(leaf, ["VIEWS.NUM", "4"])).views

    assert (views.num, views.seed, views.flip) == (4, 3, 0.25)


def test_a_base_may_come_from_detectron2_s_model_zoo(tmp_path: Path) -> None:
    base = "model_zoo://COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    path = write(tmp_path / "mine.yaml", f"_BASE_: {base}")

    assert load_config(path).MODEL.META_ARCHITECTURE == "RetinaNet"
    with pytest.raises(FileNotFoundError, match=r"yaml:1: .*detectron2 ships no none\.yaml"):
        load_config(write(tmp_path / "mine.yaml", "_BASE_: model_zoo://none.yaml"))


def test_a_cycle_of_bases_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "_BASE_: b.yaml")
    write(tmp_path / "b.yaml", "_BASE_: a.yaml")

    with pytest.raises(ValueError, match=r"_BASE_ leads back to itself: .*a\.yaml -> .*b\.yaml"):
        load_config(first)


def test_of_several_bases_the_later_one_wins(tmp_path: Path) -> None:
    write(tmp_path / "outer.yaml", "VIEWS: {NUM: 2, SEED: 2}")
    write(tmp_path / "a.yaml", "VIEWS: {NUM: 3, FLIP: 0.25}")
    write(tmp_path / "b.yaml", "_BASE_: outer.yaml\nVIEWS: {NUM: 4}")
    leaf = write(tmp_path / "leaf.yaml", "_BASE_: [a.yaml, b.yaml]")

    views = settings(load_config(leaf)).views

    assert (views.num, views.seed, views.flip) == (4, 2, 0.25)


@pytest.mark.parametrize("base", ["[[a.yaml]]", "[3]", "''", "https://example.org/base.yaml"])
def test_a_base_is_a_local_file(tmp_path: Path, base: str) -> None:
    with pytest.raises(ValueError, match=r"leaf\.yaml:1: _BASE_: expected"):
        load_config(write(tmp_path / "leaf.yaml", f"_BASE_: {base}"))


def test_a_missing_base_names_the_file_that_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"leaf\.yaml:1: _BASE_: .*none\.yaml does not"):
        load_config(write(tmp_path / "leaf.yaml", "_BASE_: none.yaml"))


def test_a_tag_in_a_base_is_refused_there(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "VIEWS:\n  NUM: !!python/name:os.system")

    with pytest.raises(ValueError, match=r"base\.yaml:2: the tag !!python/name:os\.system"):
        load_config(write(tmp_path / "leaf.yaml", "_BASE_: base.yaml"))


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("SOLVER:\n  BASE_RL: 0.1", "SOLVER.BASE_RL", "SOLVER.BASE_LR"),
        ("GID:\n  TOPK: 5", "GID.TOPK", "GID.TOP_K"),
        ("# x\nVIEW: {NUM: 1}", "VIEW", "VIEWS"),
        ("CACHE:\n  FOLDER: a", "CACHE.FOLDER", "DATASET.FOLDER"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    tmp_path: Path, text: str, unknown: str, nearest: str
) -> None:
    write(tmp_path / "base.yaml", text)

    with pytest.raises(ValueError) as error:
        load_config(write(tmp_path / "leaf.yaml", "_BASE_: base.yaml"))

    # Named is the file that states it, which is the base.
    said = f"base.yaml:2: unknown config key {unknown}, did you mean {nearest}?"
    assert said in str(error.value)
    # A node may be that of a module which was not named.
    assert str(error.value).endswith(said) == ("." in unknown)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("VIEWS: {NUM: many}", r"1: VIEWS\.NUM: expected int, such as 1, got 'many' \(str\)"),
        ("VIEWS: {NUM: 1.0}", r"VIEWS\.NUM: expected int"),
        ("VIEWS: {SCALES: 800}", r"VIEWS\.SCALES: expected tuple, such as \(800,\), got 800"),
        ("VIEWS: 3", r"1: VIEWS: expected a node with keys, got 3"),
        ("VIEWS: {NUM: {A: 1}}", r"VIEWS\.NUM: expected a value"),
        ("OUTPUT_DIR: 2024-01-01", r"OUTPUT_DIR: expected str"),
        ("VIEWS: {NUM: 0}", r"VIEWS\.NUM: expected an integer of at least 1 and .*, got 0"),
        (f"GID: {{NMS_IOU: {HUGE}}}", r"1: GID\.NMS_IOU: expected float, such as .*, got 1000"),
        (f"VIEWS: {{HUE: [0, {HUGE}]}}", r"1: VIEWS\.HUE: expected .* a number .*, got \(0, 1000"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path / "leaf.yaml", text))


def test_yaml_forms_of_one_value_are_equal(tmp_path: Path) -> None:
    text = "VIEWS: {SCALES: [640, 800], FLIP: 1}\nGID: {FEATURE_WEIGHT: 5e-4, RELATION_WEIGHT: 4}"
    made = settings(load_config(write(tmp_path / "leaf.yaml", text)))

    assert made.views.scales == (640, 800)
    assert repr((made.views.flip, made["GID"].feature_weight)) == "(1.0, 0.0005)"
    assert repr(made["GID"].relation_weight) == "4.0"


def test_overrides_are_read_as_python_literals(empty: str) -> None:
    pairs = ["VIEWS.SCALES", "(320, 640)", "GID.FEATURE_WEIGHT", "1", "CACHE.LOCATION", "a/b"]
    made = settings(load_config(empty, pairs))

    assert made.views.scales == (320, 640)
    assert repr(made["GID"].feature_weight) == "1.0"
    assert made.cache.location == "a/b"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["VIEWS.NUM"], r"pairs of KEY VALUE: VIEWS\.NUM has no value"),
        (["VIEWS.NMU", "1"], r"unknown config key VIEWS\.NMU, did you mean VIEWS\.NUM\?"),
        (["VIEW.NUM", "1"], r"unknown config key VIEW\.NUM, did you mean VIEWS\.NUM\?"),
        (["VIEWS.NUM.X", "1"], r"unknown config key VIEWS\.NUM\.X, did you mean VIEWS\.NUM\?$"),
        (["MINE.X", "1"], r"MINE\.X \(one of yours is known where IMPORTS or --import names"),
        (["VIEWS", "1"], r"VIEWS is a node"),
        (["VIEWS.NUM", "two"], r"VIEWS\.NUM: expected int"),
        (["VIEWS.NUM", "-1"], r"VIEWS\.NUM: expected an integer of at least 1 and .*, got -1"),
        (["GID.NMS_IOU", HUGE], r"override: GID\.NMS_IOU: expected float, such as .*, got 1000"),
        (["VIEWS.HUE", f"(0, {HUGE})"], r"VIEWS\.HUE: expected .* a number .*, got \(0, 1000"),
        (["VIEWS.HUE", f"(0, -{HUGE})"], r"VIEWS\.HUE: expected .* a number .*, got \(0, -1000"),
    ],
)
def test_a_wrong_override_is_refused(empty: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(empty, overrides)


@pytest.mark.parametrize(
    "text",
    ["{[]: 1}", 3000 * "-" + "1", 300 * "(", 300 * "[" + 300 * "]"],
    ids=lambda text: text[:7],
)
def test_what_python_cannot_read_is_text(empty: str, text: str) -> None:
    assert text == load_config(empty, ["OUTPUT_DIR", text]).OUTPUT_DIR
    with pytest.raises(ValueError, match=r"override: VIEWS\.NUM: expected int, such as 1, got '"):
        load_config(empty, ["VIEWS.NUM", text])


def test_settings_of_a_plain_detectron2_config_are_refused() -> None:
    with pytest.raises(ValueError, match="no node VIEWS"):
        settings(get_cfg())


def make_pair(folder: Path, **changed: Any) -> str:
    """Write a teacher and a student that names it, relative to itself."""
    write(
        folder / "t" / "teacher.yaml",
        "MODEL: {META_ARCHITECTURE: RetinaNet, WEIGHTS: imagenet.pkl}\nINPUT: {FORMAT: RGB}",
    )
    node = {"CONFIG": "../t/teacher.yaml", "WEIGHTS": "teacher.pth"} | changed
    return write(
        folder / "s" / "student.yaml",
        f"TEACHER: {{CONFIG: {node['CONFIG']!r}, WEIGHTS: {node['WEIGHTS']!r}}}\n"
        "MODEL: {DEVICE: cpu, WEIGHTS: student.pth}\n"
        "DATASETS: {TRAIN: [folder_train]}\nDATASET: {FOLDER: data}",
    )


def test_the_teacher_has_its_own_model_on_the_student_s_data_and_device(tmp_path: Path) -> None:
    teacher = teacher_config(load_config(make_pair(tmp_path)))

    assert teacher.MODEL.WEIGHTS == "teacher.pth"
    assert teacher.INPUT.FORMAT == "RGB"
    assert teacher.MODEL.DEVICE == "cpu"
    assert tuple(teacher.DATASETS.TRAIN) == ("folder_train",)
    assert teacher.DATASET.FOLDER == "data"


def test_the_teacher_is_found_beside_the_file_that_states_it_even_if_that_is_a_base(
    tmp_path: Path,
) -> None:
    make_pair(tmp_path)
    leaf = write(tmp_path / "deep" / "er" / "leaf.yaml", "_BASE_: ../../s/student.yaml")

    assert teacher_config(load_config(leaf)).INPUT.FORMAT == "RGB"


def test_a_saved_config_finds_its_teacher_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pair(tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = load_config(os.path.join("s", "student.yaml"))
    saved = tmp_path / "output" / "config.yaml"
    saved.parent.mkdir()
    saved.write_text(cfg.dump())
    monkeypatch.chdir("/")

    again = load_config(str(saved))

    assert settings(again) == settings(cfg)
    assert teacher_config(again).INPUT.FORMAT == "RGB"


def test_a_teacher_s_config_is_sought_beside_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = make_pair(tmp_path, CONFIG="t/teacher.yaml")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(FileNotFoundError, match=r"s/t/teacher\.yaml does not exist"):
        teacher_config(load_config(stated))


def test_an_override_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = make_pair(tmp_path, CONFIG="none.yaml")
    monkeypatch.chdir(tmp_path)

    cfg = load_config(stated, ["TEACHER.CONFIG", "t/teacher.yaml"])

    assert str(tmp_path / "t" / "teacher.yaml") == cfg.TEACHER.CONFIG
    assert teacher_config(cfg).INPUT.FORMAT == "RGB"


# Where a relative path leads that a config file states; the rule is in the module's text.
FROM_THE_FILE = ("TEACHER.CONFIG",)


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize("is_override", [False, True])
def test_one_rule_holds_for_the_relative_paths_of_all_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, is_override: bool
) -> None:
    *node, name = key.split(".")
    value = f"{{{name}: some/path}}" if node else "some/path"
    text = "" if is_override else f"{node[0] if node else name}: {value}"
    path = write(tmp_path / "configs" / "c.yaml", text)
    monkeypatch.chdir(tmp_path)

    cfg = load_config(path, [key, "some/path"] if is_override else [])

    found = os.path.abspath(value_of(cfg, key))
    beside_the_file = key in FROM_THE_FILE and not is_override
    folder = tmp_path / "configs" if beside_the_file else tmp_path
    assert found == str(folder / "some" / "path")


@pytest.mark.parametrize("key", PATH_KEYS)
def test_the_home_folder_is_one_in_every_key(
    empty: str, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert value_of(load_config(empty, [key, "~/a"]), key) == "/home/somebody/a"


def test_every_key_that_may_hold_a_path_obeys_the_rule() -> None:
    places = {key for key, rule in LIMITS.items() if isinstance(rule, Place)}
    ours = {"CACHE.LOCATION", "DATASET.EXCLUDE", "DATASET.FOLDER", "DATASET.IMAGE_LIST"}
    assert set(PATH_KEYS) == places | ours | {"TEACHER.CONFIG", "TEACHER.WEIGHTS"}


LAZY = "this is a detectron2 LazyConfig"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.py", "from detectron2.config import LazyCall as L\nmodel = L(dict)()\n"),
        ("c.yaml", "model:\n  _target_: detectron2.modeling.GeneralizedRCNN\n"),
    ],
)
def test_a_lazy_config_is_called_that(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(ValueError, match=rf"{name}.*: {LAZY}"):
        load_config(str(tmp_path / name))
    with pytest.raises(ValueError, match=rf"{name}.*: {LAZY}"):
        load_config(write(tmp_path / "leaf.yaml", f"_BASE_: {name}"))
    with pytest.raises(ValueError, match=rf"{name}.*: {LAZY}"):
        teacher_config(load_config(make_pair(tmp_path, CONFIG=f"../{name}")))


def test_a_lazy_config_of_the_model_zoo_is_called_that(tmp_path: Path) -> None:
    name = "model_zoo://COCO-Detection/retinanet_R_50_FPN_1x.py"
    with pytest.raises(ValueError, match=LAZY):
        teacher_config(load_config(make_pair(tmp_path, CONFIG=name)))


def test_a_teacher_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TEACHER\.CONFIG: expected"):
        teacher_config(load_config(make_pair(tmp_path, CONFIG="")))


def test_the_teacher_s_config_may_be_one_of_the_model_zoo(tmp_path: Path) -> None:
    name = "model_zoo://COCO-Detection/retinanet_R_101_FPN_3x.yaml"
    teacher = teacher_config(load_config(make_pair(tmp_path, CONFIG=name)))

    assert teacher.MODEL.RESNETS.DEPTH == 101
    assert teacher.MODEL.WEIGHTS == "teacher.pth"

    cfg = load_config(make_pair(tmp_path, CONFIG="model_zoo://none.yaml"))
    with pytest.raises(FileNotFoundError, match=r"^TEACHER\.CONFIG: detectron2 ships no none"):
        teacher_config(cfg)


def test_a_missing_teacher_config_is_refused_by_name(tmp_path: Path) -> None:
    cfg = load_config(make_pair(tmp_path, CONFIG="none.yaml"))

    with pytest.raises(FileNotFoundError, match=r"TEACHER\.CONFIG: config file /.*none\.yaml"):
        teacher_config(cfg)
