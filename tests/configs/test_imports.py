"""Modules of the user's are imported before anything is built, and their faults are one line."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from configs.imports import failure, import_modules, users_place
from configs.loader import default_config, load_config, settings, teacher_config
from configs.nodes import NODES
from detectors import families
from detectors.__main__ import main, parse
from detectors.command import read_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of the user; what a test imports is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    with patch.dict(NODES):
        yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("my_"):
            del sys.modules[name]


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/', 1)}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    "text",
    ['IMPORTS: ("my_one", "my_two.data")', "IMPORTS: [my_one, my_two.data]"],
)
def test_a_config_names_modules(here: Path, text: str) -> None:
    write(here, my_one="", my_two____init__="", my_two__data="")
    (here / "config.yaml").write_text(f"VERSION: 2\n{text}\n")
    cfg = load_config("config.yaml")
    assert cfg.IMPORTS == ("my_one", "my_two.data")
    (here / "saved.yaml").write_text(cfg.dump())
    assert load_config("saved.yaml").IMPORTS == cfg.IMPORTS


@pytest.mark.parametrize(
    "value",
    ["('a/b',)", "('a.py',)", "('.a',)", "('a..b',)", "('',)", "('2a',)", "(3,)", "('a b',)"],
)
def test_what_is_no_module_name_is_refused(here: Path, value: str) -> None:
    (here / "config.yaml").write_text(f"VERSION: 2\nIMPORTS: {value}\n")
    expected = r"config\.yaml:2: IMPORTS: expected a tuple .* the dotted name of a module"
    with pytest.raises(ValueError, match=expected):
        load_config("config.yaml")


def test_a_lone_name_is_no_tuple(here: Path) -> None:
    with pytest.raises(
        ValueError, match=r"IMPORTS: expected tuple, such as \('NAME',\), got 'my_o"
    ):
        load_config(str(ROOT / "configs/student/retinanet_r50_2x.yaml"), ["IMPORTS", "my_one"])


def test_a_path_is_wrong_use_of_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["train", "--import", "a/b.py", "--config-file", "x"])
    assert "expected the dotted name of a module" in capsys.readouterr().err


def test_modules_of_config_and_option_are_imported_once_and_saved(here: Path) -> None:
    write(here, my_one="", my_two="import my_one; my_one.seen = getattr(my_one, 'seen', 0) + 1")
    (here / "config.yaml").write_text('VERSION: 2\nIMPORTS: ("my_two",)\nDATASETS:\n  TRAIN: [a]\n')
    options = ["--import", "my_one", "--import", "my_two", "--config-file", "config.yaml"]
    cfg = read_config(parse(["train", *options]), "detectors train")
    assert sys.modules["my_one"].seen == 1
    assert cfg.IMPORTS == ("my_two", "my_one")


RETINANET = "VERSION: 2\nMODEL: {META_ARCHITECTURE: RetinaNet}\n"
MY_DETECTOR = """
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectors import register_family
from detectors.families.retinanet import RetinaNetFamily

@META_ARCH_REGISTRY.register()
class MyImported(RetinaNet): pass

class MyFamily(RetinaNetFamily):
    name, architecture = "MyFamily", MyImported

register_family(MyFamily())
"""


def test_detectors_and_families_of_a_module_decide_what_a_config_may_hold(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", dict(META_ARCH_REGISTRY._obj_map))
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    write(here, my_detector=MY_DETECTOR)
    (here / "config.yaml").write_text(
        'VERSION: 2\nIMPORTS: ("my_detector",)\nMODEL: {META_ARCHITECTURE: MyImported}\n'
        "DATASETS: {TRAIN: [a]}\n"
    )

    def read(*overrides: str) -> CfgNode:
        command = ["train", "--config-file", "config.yaml", *overrides]
        return read_config(parse(command), "detectors train")

    assert families.family_of(read()).name == "MyFamily"
    assert families.family_of(read("MODEL.FAMILY", "RetinaNet")).name == "RetinaNet"
    with pytest.raises(
        ValueError, match=r"MODEL\.FAMILY is 'Retina'; expected one of: RetinaNet, .*My"
    ):
        read("MODEL.FAMILY", "Retina")
    with pytest.raises(ValueError, match=r"MODEL\.MASK_ON is True, but MyImported has boxes alone"):
        read("MODEL.MASK_ON", "True")


def test_the_teachers_modules_are_imported_with_the_students(here: Path) -> None:
    write(here, my_one="", my_two="")
    (here / "teacher.yaml").write_text(f'{RETINANET}IMPORTS: ("my_two",)\n')
    cfg = default_config()
    cfg.IMPORTS = ("my_one",)
    cfg.TEACHER.CONFIG = str(here / "teacher.yaml")
    cfg.TEACHER.WEIGHTS = "x.pth"
    assert teacher_config(cfg).IMPORTS == ("my_one", "my_two")
    assert {"my_one", "my_two"} <= sys.modules.keys()


MINE = """
from dataclasses import dataclass
from typing import ClassVar

from configs.nodes import FieldChecks, register_node

@register_node
@dataclass(frozen=True, kw_only=True)
class MineConfig:
    node: ClassVar[str] = "MINE"
    width: int = 4
    names: tuple[str, ...] = ()

    def __post_init__(self):
        FieldChecks(self).integer("width", at_least=1, at_most=9)
        if self.names:
            sorted(self.names)
"""
NAMED = "IMPORTS: [my_nodes]\n"


@pytest.mark.parametrize(
    ("base", "leaf", "overrides", "options"),
    [
        (NAMED, "", [], []),
        ("", NAMED, [], []),
        ("IMPORTS: [my_gone]\n", NAMED, [], []),
        ("", "IMPORTS: [my_gone]\n", ["IMPORTS", "('my_nodes',)"], []),
        ("", "", ["IMPORTS", "('my_gone',)", "IMPORTS", "('my_nodes',)"], []),
        ("", "", [], ["my_nodes"]),
    ],
)
def test_the_keys_of_a_user_s_node_may_stand_wherever_its_module_is_named(
    here: Path, base: str, leaf: str, overrides: list[str], options: list[str]
) -> None:
    write(here, my_nodes=MINE)
    (here / "base.yaml").write_text(f"MINE: {{WIDTH: 5}}\nVERSION: 2\n{base}")
    (here / "leaf.yaml").write_text(f"_BASE_: base.yaml\nMINE: {{NAMES: [a, b]}}\n{leaf}")

    cfg = load_config("leaf.yaml", ["MINE.WIDTH", "6", *overrides], options)

    mine = settings(cfg)["MINE"]
    assert (mine.width, mine.names) == (6, ("a", "b"))
    assert cfg.IMPORTS == ("my_nodes",)
    (here / "saved.yaml").write_text(cfg.dump())
    assert settings(load_config("saved.yaml")) == settings(cfg)


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("{WIDTH: 10}", [], r"^c\.yaml:2: MINE\.WIDTH: expected an integer of .* 9, got 10$"),
        ("{WIDTH: wide}", [], r"^c\.yaml:2: MINE\.WIDTH: expected int, such as 4, got 'wide'"),
        ("{WIDHT: 3}", [], r"^c\.yaml:2: unknown config key MINE\.WIDHT, did you mean MINE\.WIDTH"),
        ("{}", ["MINE.WIDTH", "0"], r"^override: MINE\.WIDTH: expected an integer .*, got 0$"),
        ("{NAMES: [a, 1]}", [], r"^c\.yaml: MINE: TypeError: '<' .* \(.*/my_nodes\.py:17\)$"),
    ],
)
def test_a_wrong_value_of_a_user_s_node_is_named_as_ours_are(
    here: Path, text: str, overrides: list[str], expected: str
) -> None:
    write(here, my_nodes=MINE)
    (here / "c.yaml").write_text(f"VERSION: 2\nMINE: {text}\n{NAMED}")
    with pytest.raises(ValueError, match=expected):
        load_config("c.yaml", overrides)


def test_a_node_without_its_module_is_unknown(here: Path) -> None:
    (here / "c.yaml").write_text("VERSION: 2\nMINE: {WIDTH: 3}\n")
    with pytest.raises(ValueError, match=r"^c\.yaml:2: unknown config key MINE"):
        load_config("c.yaml")


def test_the_teacher_s_config_takes_the_nodes_of_the_student_s_modules(here: Path) -> None:
    write(here, my_nodes=MINE)
    (here / "teacher.yaml").write_text(f"{RETINANET}MINE: {{WIDTH: 3}}\n")
    (here / "c.yaml").write_text("VERSION: 2\nTEACHER: {CONFIG: teacher.yaml, WEIGHTS: x.pth}\n")

    cfg = load_config("c.yaml", imports=["my_nodes"])

    assert settings(teacher_config(cfg))["MINE"].width == 3
    assert settings(cfg)["MINE"].width == 4


def test_a_student_s_config_is_none_the_worse_for_a_node_of_its_teacher_s(here: Path) -> None:
    write(here, my_nodes=MINE)
    (here / "teacher.yaml").write_text(f"{RETINANET}MINE: {{WIDTH: 3}}\n{NAMED}")
    (here / "c.yaml").write_text("VERSION: 2\nTEACHER: {CONFIG: teacher.yaml, WEIGHTS: x.pth}\n")
    cfg = load_config("c.yaml")

    assert settings(teacher_config(cfg))["MINE"].width == 3
    assert settings(cfg)["MINE"].width == 4


def test_a_node_that_is_registered_twice_is_one_line_with_both(here: Path) -> None:
    write(here, my_nodes=MINE, my_other=MINE.replace("MineConfig", "Other"))
    (here / "c.yaml").write_text("VERSION: 2\nIMPORTS: [my_nodes, my_other]\n")
    expected = (
        r"^c\.yaml:2: IMPORTS: my_other: fails .*: ValueError: my_other\.Other: the name MINE is "
        r"taken by my_nodes\.MineConfig; choose another one \(.*/my_other\.py:\d+\)"
    )
    with pytest.raises(ValueError, match=expected):
        load_config("c.yaml")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my_gone", r"No module named 'my_gone'; start the command in the folder that holds my_go"),
        ("my_set.gone", r"No module named 'my_set\.gone'; my_set is .*/my_set, look for it there"),
        ("my_set.lacks", r"ModuleNotFoundError: No module named 'other' \(.*/my_set/lacks\.py:2\)"),
        ("my_set.syntax", r"SyntaxError: .* \(.*/my_set/syntax\.py:1\)"),
        ("my_set.deep", r"JSONDecodeError: Expecting .* \(.*/my_set/deep\.py:4\)"),
        ("my_set.twice", r"AssertionError: .*'Twice'.* already registered .*my_set/twice\.py:3\)"),
        ("my_set.ends", r"SystemExit: 3 \(.*/my_set/ends\.py:2\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    here: Path, name: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        here,
        my_set____init__="",
        my_set__lacks="\nimport other",
        my_set__syntax="def",
        my_set__deep="import json\n\ndef read():\n    json.loads('')\nread()",
        my_set__twice="from detectron2.modeling import BACKBONE_REGISTRY\nclass Twice: ...\n"
        "for _ in range(2): BACKBONE_REGISTRY.register(Twice)",
        my_set__ends="import sys\nsys.exit(3)",
    )
    (here / "config.yaml").write_text(f"VERSION: 2\nIMPORTS: ({name!r},)\nDATASETS: {{TRAIN: [a]}}")
    assert main(["train", "--config-file", "config.yaml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: config.yaml:2: IMPORTS: {name}: ")
    with pytest.raises(ValueError, match=f"^--import: {name}: .*{expected}"):
        import_modules([name], "--import")


@pytest.mark.parametrize("name", ["dataset", "dataset.birds", "dataset.views", "tests.birds"])
def test_a_module_that_ours_would_hide_is_named(here: Path, name: str) -> None:
    top = name.partition(".")[0]
    (here / top).mkdir()
    (here / top / "birds.py").write_text("")
    expected = rf"{top} is a package of this project, {ROOT / top}, and is imported in place of "
    with pytest.raises(ValueError, match=f"^IMPORTS: {name}: {expected}{here / top}; rename yours"):
        import_modules([name])


@pytest.mark.parametrize("package", ["detectors", "stage1_dump", "stage2_distill"])
@pytest.mark.parametrize("name", ["configs/__init__.py", "storage.py"])
def test_a_module_that_hides_ours_is_named(here: Path, package: str, name: str) -> None:
    path = here / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    found = command(here, package)
    place = path.parent if path.name == "__init__.py" else path
    ours = ROOT / path.relative_to(here).parts[0].removesuffix(".py")
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"error: {place} is imported in place of {ours}, a package of this pro")


def test_a_folder_without_code_hides_nothing(here: Path) -> None:
    for name in ("configs", "dataset", "storage", "tests"):
        (here / name).mkdir()
    # As an editable install, which is asked after all folders on the path.
    finder = (
        "import sys\nfrom importlib.machinery import PathFinder\n"
        "class Last:\n    @staticmethod\n    def find_spec(name, path=None, target=None):\n"
        f"        return PathFinder.find_spec(name, [{str(ROOT)!r}]) if path is None else None\n"
        "sys.meta_path.insert(sys.meta_path.index(PathFinder) + 1, Last)\n"
    )
    (here / "sitecustomize.py").write_text(finder)
    assert command(here, "stage1_dump", {"PYTHONPATH": str(here)}).returncode == 0


def command(
    here: Path, package: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", package, "--help"],
        cwd=here,
        env={"PYTHONPATH": str(ROOT), "PATH": "", **(variables or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_library_that_is_named_stays_one(here: Path) -> None:
    from fvcore.common.registry import Registry

    import_modules(["fvcore.common"])
    with pytest.raises(KeyError) as caught:
        Registry("models").get("mine")
    assert users_place(caught.value) == ""


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert failure(ValueError("nothing ran")) == "ValueError: nothing ran"
