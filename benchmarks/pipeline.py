"""The commands of the whole job, run as a user would type them.

Every step is a real command in its own process. Its output goes to a log file, its time is kept,
and a step that failed ends the run with the last lines of its log.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dataset.reading import load_annotations

T = TypeVar("T")

# What stage 2 writes last: the student alone.
EXPORTED_NAME = "student_final.pth"
# Training would evaluate at its end; here `evaluate` does it, on the checkpoint.
_NO_EVALUATION = ("DATASETS.TEST", "()")
# What `write_configs` writes.
_CONFIG_NAMES = ("teacher", "distill")
CONFIGS = Path(__file__).parent.parent / "configs"


class StepError(Exception):
    """A command of the pipeline failed."""


@dataclass(kw_only=True)
class Pipeline:
    """One teacher, its cache and any number of students, in one folder.

    Attributes:
        folder: where everything is written.
        data: a COCO-format folder with `instances_train.json` and `instances_val.json`.
        base: folder under `configs/` of the `teacher.yaml` and `distill.yaml` to start from.
        overrides: config keys set in all configs, such as `SOLVER.MAX_ITER`.
        teacher_overrides, view_overrides: config keys set in the teacher's config alone, or in
            that of distillation.
        split: of the images to train on; the annotations are `instances_<split>.json`.
        seconds: wall time of every step that ran, by name.
    """

    folder: Path
    data: Path
    base: str = "demo"
    overrides: dict[str, Any] = field(default_factory=dict)
    teacher_overrides: dict[str, Any] = field(default_factory=dict)
    view_overrides: dict[str, Any] = field(default_factory=dict)
    split: str = "train"
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        """The teacher cache."""
        return self.folder / "cache"

    @property
    def teacher_weights(self) -> Path:
        """What training the teacher writes last."""
        return self.folder / "teacher" / "model_final.pth"

    def write_configs(self) -> None:
        """Write the configs for this folder and data; shipped ones are their bases."""
        folder = self.data / "annotations"
        classes = load_annotations(folder / f"instances_{self.split}.json").categories
        tested = "val" if (folder / "instances_val.json").exists() else self.split
        common = {
            "DATASET": {"FOLDER": str(self.data)},
            "DATASETS": {"TRAIN": [f"folder_{self.split}"], "TEST": [f"folder_{tested}"]},
        }
        detector = {self._classes_key(): len(classes)}
        self._write_config(
            "teacher",
            {**common, "OUTPUT_DIR": str(self.folder / "teacher")},
            {**detector, **self.teacher_overrides},
        )
        self._write_config(
            "distill",
            {
                **common,
                "TEACHER": {
                    # Beside this one: a config names another from where it lies itself.
                    "CONFIG": self.config("teacher").name,
                    "WEIGHTS": str(self.teacher_weights),
                },
                "CACHE": {"LOCATION": str(self.cache)},
            },
            {**detector, **self.view_overrides},
        )

    def _classes_key(self) -> str:
        """The config key of the number of classes, which depends on the family."""
        # They import PyTorch, which `--help` need not wait for.
        from configs.loader import load_config
        from detectors.families import num_classes

        found = num_classes(load_config(str(CONFIGS / self.base / "teacher.yaml")))
        assert found is not None
        return found[0]

    def config(self, name: str) -> Path:
        """The path of a config that `write_configs` wrote."""
        return self.folder / "configs" / f"{name}.yaml"

    def resolved_configs(self) -> str:
        """All keys of teacher and students, as YAML."""
        from configs.loader import load_config

        return "\n".join(load_config(str(self.config(one))).dump() for one in _CONFIG_NAMES)

    def train_teacher(self) -> Path:
        """Train the teacher anew on ground truth and give its weights."""
        shutil.rmtree(self.teacher_weights.parent, ignore_errors=True)
        self.run(
            "teacher", "detectors", "train", "--config-file", self.config("teacher"),
            *_NO_EVALUATION,
        )  # fmt: skip
        return self.teacher_weights

    def dump(
        self,
        preset: str = "balanced",
        *overrides: Any,
        name: str = "cache",
        go_on: bool = False,
    ) -> Path:
        """Write a teacher cache, and give its folder.

        Args:
            preset: of the cache.
            overrides: KEY, VALUE, ... of the config.
            name: of the folder.
            go_on: with the cache of an earlier run, in place of writing it anew.
        """
        cache = self.folder / name
        if not go_on:
            shutil.rmtree(cache, ignore_errors=True)
        on_cpu = self.overrides.get("MODEL.DEVICE", "cpu") == "cpu"
        ranks = min(2, os.cpu_count() or 1) if on_cpu else 1
        self.run(
            f"dump {cache.name}", "stage1_dump", "run", "--num-gpus", ranks,
            "--config-file", self.config("distill"),
            "CACHE.LOCATION", cache, "CACHE.PRESET", preset, *overrides,
        )  # fmt: skip
        return cache

    def verify(self) -> None:
        """Check every byte of the cache."""
        self.run("verify", "storage", "verify", self.cache, "--level", "full")

    def train_student(
        self,
        name: str,
        *,
        source: str,
        seed: int,
        keys: dict[str, Any] | None = None,
        evaluations: int = 0,
    ) -> Path:
        """Train a student anew and give its folder.

        Args:
            name: of the folder.
            source: TEACHER.SOURCE.
            seed: of the student.
            keys: further overrides.
            evaluations: how often it is evaluated, the end included.
        """
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        stated = {"TEACHER.SOURCE": source, "SEED": seed, "OUTPUT_DIR": folder, **(keys or {})}
        pairs = [part for pair in stated.items() for part in pair]
        self.run(
            name, "stage2_distill", "train", "--config-file", self.config("distill"),
            *pairs, *(self._evaluating(evaluations) if evaluations else _NO_EVALUATION),
        )  # fmt: skip
        return folder

    def _evaluating(self, times: int) -> tuple[Any, ...]:
        """Overrides that make a student's training evaluate so many times."""
        from configs.loader import load_config

        iterations = load_config(str(self.config("distill"))).SOLVER.MAX_ITER
        return "TEST.EVAL_PERIOD", max(1, iterations // times)

    def evaluate(self, name: str, config: str, weights: Path) -> dict[str, float]:
        """COCO metrics of a checkpoint on the validation images, in percent."""
        output = self.run(
            f"evaluate {name}", "detectors", "eval", "--config-file", self.config(config),
            "--json", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", self.folder / "evaluation" / name,
        )  # fmt: skip
        return dict(json.loads(output.splitlines()[-1])["folder_val"])

    def run(self, name: str, module: str, *arguments: Any, codes: tuple[int, ...] = (0,)) -> str:
        """Run `python -m module ...`; returns what it printed.

        Raises:
            StepError: it ended with another exit code than those expected.
        """
        command = [sys.executable, "-m", module, *map(str, arguments)]
        log = self.folder / "logs" / f"{name.replace(' ', '_')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"[{name}] python {shlex.join(command[1:])}", flush=True)
        # On models this small a second thread gains nothing; two commands side by side do.
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        with self._timed(name), open(log, "w") as file:
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
            )
        text = log.read_text(errors="replace")
        if done.returncode not in codes:
            tail = "\n".join(text.splitlines()[-12:])
            raise StepError(
                f"step {name!r} failed with exit code {done.returncode} ({log}):\n{tail}"
            )
        return text

    def _write_config(
        self, name: str, content: dict[str, Any], overrides: dict[str, Any] | None = None
    ) -> None:
        path = self.config(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A copy: nodes are shared by the configs.
        content = json.loads(json.dumps(content))
        for key, value in {**self.overrides, **(overrides or {})}.items():
            *parents, leaf = key.split(".")
            node = content
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        base = {"_BASE_": str(CONFIGS / self.base / f"{name}.yaml"), "VERSION": 2}
        path.write_text(yaml.safe_dump({**base, **content}, sort_keys=False))

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start
        print(f"[{name}] {self.seconds[name]:.0f} s", flush=True)


def check_data(folder: Path) -> None:
    """Look for what training and evaluation will need, before anything is trained.

    Raises:
        FileNotFoundError: the folder has no annotations to train on, or none to evaluate on.
    """
    for split in ("train", "val"):
        path = folder / "annotations" / f"instances_{split}.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: there is no such file; expected a folder in COCO format, with "
                "annotations/instances_train.json and annotations/instances_val.json"
            )


def side_by_side(*steps: Callable[[], T]) -> list[T]:
    """Run steps that do not need each other at the same time; their results in order.

    Raises:
        StepError: one failed; the others are waited for.
    """
    with ThreadPoolExecutor(len(steps)) as pool:
        futures = [pool.submit(step) for step in steps]
    return [future.result() for future in futures]
