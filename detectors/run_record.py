"""`run.json`: which run wrote the metrics beside it, and what came out.

It is there from the beginning of a training, and says at its end that it is finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from configs.stock_limits import leaves
from storage.whole import write_whole

from .versions import library_versions

if TYPE_CHECKING:
    from .trainer import Trainer

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


def run_digest(cfg: CfgNode) -> str:
    """A short name for what a run computes: runs of one digest are the same run."""
    text = json.dumps(known_config(cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def train_recorded(trainer: Trainer, cfg: CfgNode, *, resume: bool) -> None:
    """Train to the end, and keep the record of it in OUTPUT_DIR.

    Args:
        trainer: made of the config.
        cfg: as the user gave it, not yet fitted to the ranks.
        resume: go on from the last checkpoint, if there is one.
    """
    trainer.resume_or_load(resume=resume)
    folder = Path(cfg.OUTPUT_DIR)
    record = _begun(cfg, folder, trainer.start_iter)
    if comm.is_main_process():
        record.write(folder)
    trainer.train()
    if comm.is_main_process():
        replace(
            record, finished=True, iterations=trainer.max_iter, results=trainer.results
        ).write(folder)  # fmt: skip


def _begun(cfg: CfgNode, folder: Path, start: int) -> RunRecord:
    before = read_record(folder) if start else None
    digest = run_digest(cfg)
    parts = before.parts if before else ()
    if not parts or parts[-1]["config"] != digest:
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
