"""The example of docs/EXTENDING.md, run as it stands there, from a folder outside the project."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from storage import CacheReader, FormatError, verify
from tests.fresh import stdout_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "EXTENDING.md").read_text()
COMMANDS = re.findall(r"^python -m (.*)$", PAGE, flags=re.MULTILINE)
MODULES = tuple(
    f"my_project.{one}"
    for one in ("nodes", "models", "detector", "data", "steps", "codecs", "methods")
)
# The exported student, as docs/EXPORT.md has it.
BUILD = """
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
{steps}
assert not DetectionCheckpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)
"""
# Of a machine without a GPU and without spare cores.
SMALL = ("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's folder: the page's files, and birds."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    generator = np.random.default_rng(3)
    (folder / "birds").mkdir()
    for split, count in (("train", 4), ("val", 2)):
        lines = []
        for number in range(count):
            name = f"{split}{number}.png"
            pixels = generator.integers(0, 256, (64, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "birds" / name)
            kinds = ("crow", "wren")[: number % 2 + 1]
            lines += [f"{name},4,4,40,{40 + place},{kind}" for place, kind in enumerate(kinds)]
        (folder / "birds" / f"{split}.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def dumped(project: Path) -> Path:
    """The same folder after the page's first two commands."""
    # Every rank is a process of its own that builds the user's backbone.
    run(project, COMMANDS[0], "--num-gpus", "2")
    run(project, COMMANDS[1])
    return project


def run(project: Path, command: str, *options: str) -> None:
    """Run a command of the page with more options."""
    module, name, *rest = command.split()
    python(project, "-m", module, name, *options, *rest, *SMALL)


def python(project: Path, *arguments: str) -> None:
    """Run Python in the user's folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stdout_of([sys.executable, *arguments], cwd=project, env=environment, timeout=300)


def test_the_page_s_commands_train_evaluate_dump_and_distill(dumped: Path) -> None:
    run(dumped, COMMANDS[2])
    for name in ("teacher", "student"):
        assert "birds_val/AP50" in (dumped / "output" / name / "metrics.json").read_text()
        saved = yaml.safe_load((dumped / "output" / name / "config.yaml").read_text())
        assert tuple(saved["IMPORTS"]) == MODULES
        assert saved["TWO_LEVELS"] == {"CHANNELS": 24 if name == "teacher" else 8}
    weights = torch.load(dumped / "output/student/student_final.pth", weights_only=True)["model"]
    assert "head.shared.weight" in weights
    metrics = (dumped / "output" / "student" / "metrics.json").read_text()
    assert "loss_energy" in metrics and "loss_gid_feature" in metrics
    # By the first lines of its config, from the same folder.
    text = (dumped / "output/student/student_final.yaml").read_text()
    steps = re.findall(r"^#     (.*)$", text, flags=re.MULTILINE)
    steps[-1] = steps[-1].replace("student_final", "output/student/student_final")
    python(dumped, "-c", BUILD.format(steps="\n".join(steps)))
    # Which is evaluated without the module of the method.
    found = yaml.safe_load(text)
    assert "ENERGY" not in found and found["TWO_LEVELS"] == {"CHANNELS": 8}


def test_views_have_the_augmentation_of_the_page(dumped: Path) -> None:
    samples = CacheReader(str(dumped / "output/cache"), signals=())
    pixels = [samples.read(record)["pixels_sample"] for record in range(len(samples))]
    is_grey = {bool((one == one[..., :1]).all()) for one in pixels}
    assert is_grey == {False, True}


def test_records_are_encoded_by_the_codec_of_the_page_and_checked_without_it(dumped: Path) -> None:
    reader = CacheReader(str(dumped / "output/cache"))
    assert reader.manifest.signals["features"]["codec"]["name"] == "ranged_maps"
    assert verify(reader.location, "deep").ok
    with pytest.raises(FormatError, match=r"codec 'ranged_maps': expected one of .*\(IMPORTS\)"):
        _ = reader.codec


@pytest.fixture(scope="module")
def bare(dumped: Path) -> list[str]:
    """Configs that name no modules, `bare_*.yaml`, and the options that do."""
    for name in ("teacher.yaml", "student.yaml"):
        text = re.sub(r"\nIMPORTS: \(.*?\)\n", "\n", (dumped / name).read_text(), flags=re.DOTALL)
        (dumped / f"bare_{name}").write_text(text.replace(" teacher.yaml", " bare_teacher.yaml"))
    return [word for module in reversed(MODULES) for word in ("--import", module)]


def test_a_cache_names_no_code_and_is_the_same_by_option(dumped: Path, bare: list[str]) -> None:
    command = COMMANDS[1].replace("student.yaml", "bare_student.yaml CACHE.LOCATION output/other")
    run(dumped, command, *bare)
    caches = [dumped / "output" / name for name in ("cache", "other")]
    ours, theirs = (CacheReader(str(cache)).manifest for cache in caches)
    assert ours == theirs
    step = {"name": "grey", "version": 1, "parameters": {"share": 0.5}}
    assert ours.augmentation["steps"][-1] == step
    for path in (path for cache in caches for path in cache.rglob("*") if path.is_file()):
        # The log keeps the config as it was, for people: no command reads it.
        is_noted = path.parent.name == "log" and path.name == "config.json"
        assert (b"my_project" in path.read_bytes()) == is_noted


def test_two_sets_are_distilled_with_crop_jitter_and_colours(dumped: Path, bare: list[str]) -> None:
    nodes = {
        "_BASE_": "bare_student.yaml",
        "DATASETS": {"TRAIN": ["birds_train", "birds_val"], "TEST": []},
        "VIEWS": {
            "CROP": ["relative_range", 0.7, 0.7], "SCALES": [], "MAX_SIZE": 0,
            "SCALE_RANGE": [0.5, 1.5], "FIXED_SIZE": [64, 96], "BRIGHTNESS": [0.6, 1.4],
            "SATURATION": [0.6, 1.4], "HUE": [-0.1, 0.1],
        },
        "CACHE": {"LOCATION": "output/wide_cache"},
        "OUTPUT_DIR": "output/wide",
        "VERSION": 2,
    }  # fmt: skip
    (dumped / "wide_student.yaml").write_text(yaml.safe_dump(nodes))
    for command in COMMANDS[1:3]:
        run(dumped, command.replace("student.yaml", "wide_student.yaml"), *bare)
    manifest = CacheReader(str(dumped / "output/wide_cache")).manifest
    assert [one["name"] for one in manifest.dataset["sets"]] == ["birds_train", "birds_val"]
    steps = [one["name"] for one in manifest.augmentation["steps"]]
    assert {"crop", "resize_scale", "fixed_size", "brightness", "hue", "grey"} <= {*steps}
    assert (dumped / "output/wide/student_final.pth").is_file()
