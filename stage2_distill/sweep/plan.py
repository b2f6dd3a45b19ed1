"""What a sweep trains: every row with every seed, all of it checked before anything is trained."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from configs.stock_keys import DISTILL
from configs.wording import one_line
from dataset.annotations import annotations_digest
from dataset.registry import is_coco, locate
from detectors import Setup, weights_path
from detectors.command import read_config, register_data
from detectors.datasets import require_fit
from detectors.run_record import (
    RunRecord,
    changed_keys,
    kept_config,
    known_config,
    read_record,
    run_digest,
)
from detectors.scaling import fitted_to_ranks
from storage import CacheError

from ..methods import build_methods
from ..trainer import images_and_teacher
from .runs_file import RESERVED, SAME_IMAGES, Row

# What a training leaves behind, and goes on with under --resume alone.
_LEFT = ("metrics.json", "last_checkpoint")


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One training: a row with a seed.

    Attributes:
        row: its name.
        seed: SEED.
        cfg: the resolved config.
    """

    row: str
    seed: int
    cfg: CfgNode

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Its OUTPUT_DIR."""
        return Path(self.cfg.OUTPUT_DIR)

    @cached_property
    def digest(self) -> str:
        """See `detectors.run_record.run_digest`."""
        return run_digest(self.cfg)

    @cached_property
    def steps(self) -> int:
        """How many it takes on one rank, at most."""
        return int(fitted_to_ranks(self.cfg).SOLVER.MAX_ITER)

    @property
    def is_begun(self) -> bool:
        """Whether there is something to resume."""
        return any((self.folder / name).exists() for name in _LEFT)

    def record(self) -> RunRecord | None:
        """What the training says of itself, once it is finished; None before."""
        found = read_record(self.folder)
        return found if found and found.finished and found.config == self.digest else None


def plan_runs(args: argparse.Namespace, rows: Sequence[Row], output: Path) -> list[Run]:
    """Resolve and check every row; the runs in the order of training, all rows of a seed first.

    Args:
        args: of the command: `config_file`, `opts`, `imports` and `seeds`.
        rows: of the runs file.
        output: the folder of the sweep.

    Raises:
        FileNotFoundError, ValueError: a row that could not be trained, or that is the same as
            another one; a row that is evaluated on other images than the first; a folder that holds
            another run. One line that names the row.
    """
    _check_options(args.opts)
    _check_names(rows)
    plan: dict[str, list[Run]] = {}
    evaluated: dict[str, dict[str, str]] = {}
    for row in rows:
        try:
            plan[row.name] = list(_runs(args, row, output))
            _check_run(plan[row.name][0].cfg)
            evaluated[row.name] = _evaluated(plan[row.name][0].cfg)
        except (CacheError, OSError, ValueError) as error:
            text = one_line(error).removeprefix("override: ")
            raise ValueError(f"{row.title}{text}") from error
    _check_evaluated(rows, plan, evaluated)
    _check_digests(rows, plan)
    runs = [runs[number] for number in range(args.seeds) for runs in plan.values()]
    for run in runs:
        _check_folder(run)
    return runs


def folder_of(row: str) -> str:
    """The name of a row's folder."""
    return re.sub(r"[^\w.-]+", "_", row).strip("_.")


def _runs(args: argparse.Namespace, row: Row, output: Path) -> Iterator[Run]:
    for seed in range(1, args.seeds + 1):
        own: dict[str, Any] = {
            **dict(row.overrides),
            "SEED": seed,
            "OUTPUT_DIR": str(output / folder_of(row.name) / f"seed_{seed}"),
        }
        pairs = [part for pair in own.items() for part in pair]
        stated = argparse.Namespace(
            config_file=args.config_file, imports=args.imports, opts=[*args.opts, *pairs]
        )
        cfg = read_config(stated, DISTILL)
        cfg.freeze()
        yield Run(row=row.name, seed=seed, cfg=cfg)


def _check_options(opts: Sequence[str]) -> None:
    if "SEED" in opts[::2]:
        raise ValueError(f"SEED cannot be set here: {RESERVED['SEED']}")


def _check_names(rows: Sequence[Row]) -> None:
    folders: dict[str, Row] = {}
    for row in rows:
        folder = folder_of(row.name).lower()
        if not folder:
            raise ValueError(f"{row.title}expected a name with letters or digits; rename it")
        if folder in folders:
            raise ValueError(
                f"{row.title}it would have the same folder as row {folders[folder].name!r}, "
                f"{folder}; rename one of them"
            )
        folders[folder] = row


def _check_run(cfg: CfgNode) -> None:
    """See that a training would find all it needs, as it does itself before it builds a model."""
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty, but a sweep compares AP; name a dataset there")
    setup = Setup(fitted_to_ranks(cfg))
    register_data(cfg)
    require_fit(cfg, ("TRAIN", "TEST"))
    if cfg.MODEL.WEIGHTS:
        weights_path(cfg.MODEL.WEIGHTS)
    _, teacher = images_and_teacher(setup)
    if teacher:
        build_methods(teacher.pair)


def _evaluated(cfg: CfgNode) -> dict[str, str]:
    """What a config is evaluated on: name to digest, before the next row registers its folder.

    Sets of other evaluators are those that a module registers once, for all rows.
    """
    return {
        name: annotations_digest(locate(name)[0]) for name in cfg.DATASETS.TEST if is_coco(name)
    }


def _check_evaluated(
    rows: Sequence[Row], plan: dict[str, list[Run]], evaluated: dict[str, dict[str, str]]
) -> None:
    first = rows[0]
    for row in rows[1:]:
        for name, digest in evaluated[first.name].items():
            if evaluated[row.name][name] != digest:
                here, there = (plan[one.name][0].cfg.DATASET.FOLDER for one in (row, first))
                raise ValueError(
                    f"{row.title}DATASET.FOLDER is {here!r}, and {there!r} in row {first.name!r}: "
                    f"their annotations of {name} differ, but {SAME_IMAGES}"
                )


def _check_digests(rows: Sequence[Row], plan: dict[str, list[Run]]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        digest = plan[row.name][0].digest
        if digest in seen:
            raise ValueError(
                f"{row.title}its config is the same as that of row {seen[digest]!r}, so that there "
                "is nothing to compare; change one of them or leave it out"
            )
        seen[digest] = row.name


def _check_folder(run: Run) -> None:
    """Refuse a folder that holds another run than this one."""
    record = read_record(run.folder)
    if record is None and not (run.folder / "last_checkpoint").exists():
        return  # nothing was trained there
    if record is not None and record.config == run.digest:
        return
    stored = kept_config(run.folder)
    named = changed_keys(stored, known_config(run.cfg)) if stored else ""
    if named or record is not None:
        digests = f"its digest is {record.config} there and {run.digest} here" if record else ""
        raise ValueError(
            f"{run.folder} holds a run of another config: {named or digests}. Name another "
            "--output, or remove that folder"
        )
