"""`run.json`: which run wrote the metrics beside it, and what came out.

It is there from the beginning of a training, and says at its end that it is finished.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from configs.stock_limits import leaves
from configs.wording import listed
from storage.whole import write_whole

from .command import require_new_run, set_up
from .versions import library_versions

if TYPE_CHECKING:
    from .trainer import Trainer

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
RECORD_NAME = "run.json"
# Where a run writes and how it spends its time, which changes nothing of what comes out.
_NO_MATTER = (
    "CACHE.PREFETCH_BYTES",
    "CACHE.WRITERS",
    "DATALOADER.NUM_WORKERS",
    "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.PREEMPTION_SIGNAL",
)
_DIGITS = 16
# Keys that a message names; further ones are counted.
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, as `run.json` has it.

    Attributes:
        config: digest of its config, see `run_digest`.
        seed: SEED.
        ranks: processes that trained.
        train, test: names of the datasets.
        libraries: name to version.
        parts: `{"first_iteration": ..., "config": ...}` for the start, and for every resumption
            under another config: whose lines those of `metrics.json` are.
        finished: whether it came to its end.
        iterations: steps until then; fewer than SOLVER.MAX_ITER where TEST.PATIENCE ended it.
        results: of its last evaluation, `{dataset: {"AP": ..., "AP-<class>": ...}}`, in percent.
    """

    config: str
    seed: int
    ranks: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    libraries: Mapping[str, str]
    parts: tuple[Mapping[str, Any], ...]
    finished: bool = False
    iterations: int | None = None
    results: Mapping[str, Mapping[str, float]] | None = None

    def write(self, folder: Path) -> None:
        """Write it into the folder of the run, whole or not at all."""
        write_whole(folder / RECORD_NAME, json.dumps(asdict(self), indent=1) + "\n")


def read_record(folder: Path) -> RunRecord | None:
    """Read the record of a run; None where there is none.

    Raises:
        ValueError: the file holds something else.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        return None
    try:
        return RunRecord(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected what a training writes, got something else ({error}); remove the "
            "file, and --resume writes it again"
        ) from None


def known_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config changes the outcome: full key to value, as JSON gives it back.

    Args:
        cfg: a resolved config, or the `config.yaml` that a run keeps of it.
    """
    found = {key: value for key, value in leaves(cfg) if key not in _NO_MATTER}
    content: dict[str, Any] = json.loads(json.dumps(found, sort_keys=True))
    return content


def kept_config(folder: Path) -> dict[str, Any]:
    """The `known_config` of the training in a folder; empty where none can be read."""
    try:
        stored = yaml.safe_load((folder / CONFIG_NAME).read_text())
    except (FileNotFoundError, ValueError, yaml.YAMLError):
        return {}
    return known_config(stored) if isinstance(stored, dict) else {}


def changed_keys(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first keys in which two `known_config` differ, with both values."""
    other = (
        f"{key} is {stored.get(key)!r} there and {wanted.get(key)!r} here"
        for key in {**stored, **wanted}
        if stored.get(key) != wanted.get(key)
    )
    return listed(other, shown=_NAMED, between="; ")


def run_digest(cfg: CfgNode) -> str:
    """A short name for what a run computes: runs of one digest are the same run."""
    return _digest(known_config(cfg))


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def train_recorded(
    make_trainer: Callable[[CfgNode], Trainer], cfg: CfgNode, args: argparse.Namespace
) -> None:
    """Train to the end, and keep the record of it in OUTPUT_DIR.

    Args:
        make_trainer: makes it of the config, once the data are registered.
        cfg: as the user gave it, not yet fitted to the ranks.
        args: of the command; with `resume` it goes on from the last checkpoint, if there is one.
    """
    require_new_run(cfg, resume=args.resume)
    set_up(cfg, args)
    trainer = make_trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    folder, is_main = Path(cfg.OUTPUT_DIR), comm.is_main_process()
    record = _begun(cfg, folder, trainer.start_iter)
    if is_main:
        record.write(folder)
        write_whole(folder / CONFIG_NAME, cfg.dump())
    trainer.train()
    if is_main:
        replace(
            record, finished=True, iterations=trainer.max_iter, results=trainer.results
        ).write(folder)  # fmt: skip


def _begun(cfg: CfgNode, folder: Path, start: int) -> RunRecord:
    before = read_record(folder) if start else None
    digest = run_digest(cfg)
    parts = before.parts if before else ()
    if not parts or parts[-1]["config"] != digest:
        if parts and comm.is_main_process():
            _tell_changes(parts[-1]["config"], kept_config(folder), cfg)
        parts = (*parts, {"first_iteration": start, "config": digest})
    return RunRecord(
        config=digest,
        seed=cfg.SEED,
        ranks=comm.get_world_size(),
        train=tuple(cfg.DATASETS.TRAIN),
        test=tuple(cfg.DATASETS.TEST),
        libraries=library_versions(),
        parts=parts,
    )


def _tell_changes(digest: str, kept: Mapping[str, Any], cfg: CfgNode) -> None:
    """Warn of another config than the one of this digest, that a run had before it was resumed."""
    # That of the folder may have been changed by hand.
    named = changed_keys(kept, known_config(cfg)) if _digest(kept) == digest else ""
    logger.warning(
        "this run goes on with another config than it had: %s",
        named or f"its digest is {digest} there and {run_digest(cfg)} here",
    )
