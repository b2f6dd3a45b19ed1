"""What the commands of both stages share: arguments, set-up and exit codes."""

from __future__ import annotations

import argparse
import logging
import math
import re
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.imports import MODULE
from configs.rules import MAX_WHOLE, Number, Whole
from configs.wording import one_line
from storage import CacheError
from storage.progress import say
from storage.resources import exhausted, with_remedy

from .places import refuse_in_cache, refuse_output_dir
from .stopping import Interrupted

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

# On one machine, and machines; more is a typing error.
MAX_PROCESSES = 1024


# What a user can mend; anything else is our own mistake and keeps its traceback. A missing module
# is an extra that was not installed.
FOR_USERS: tuple[type[Exception], ...] = (
    CacheError,
    FloatingPointError,
    ModuleNotFoundError,
    OSError,
    ValueError,
)


def add_job_arguments(parser: argparse.ArgumentParser, *, resumes: bool = True) -> None:
    """The arguments that detectron2 users know, the config among them."""
    add_config_arguments(parser)
    parser.set_defaults(resume=False)
    if resumes:
        parser.add_argument(
            "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
        )
    parser.add_argument(
        "--num-gpus",
        type=whole(1, MAX_PROCESSES),
        default=1,
        help="processes on this machine, one for each GPU",
    )
    parser.add_argument(
        "--num-machines", type=whole(1, MAX_PROCESSES), default=1, help="machines in all"
    )
    parser.add_argument(
        "--machine-rank",
        type=whole(0, MAX_PROCESSES - 1),
        default=0,
        help="number of this machine, from 0",
    )
    parser.add_argument(
        "--dist-url", default="auto", help="address of the first machine, tcp://host:port"
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """`--config-file`, `--import`, and the overrides behind them."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML config")
    add_import_argument(parser)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        action=_Overrides,
        metavar="KEY VALUE",
        help="overrides of config keys, behind all options",
    )


def add_image_arguments(
    parser: argparse.ArgumentParser, count: str, *, default: int, at_most: int = MAX_WHOLE
) -> None:
    """An option for a number of images, such as `--count`, or `--image-id` for `image_ids`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        count,
        type=whole(1, at_most),
        default=default,
        help=f"number of images, evenly spread over the data set (default: {default})",
    )
    which.add_argument(
        "--image-id",
        action="append",
        default=[],
        dest="image_ids",
        type=int,
        metavar="ID",
        help="an image by its id, in their place; may be given several times",
    )


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """`--import`: `imports` are names of modules, for `configs.imports.import_modules`."""
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        type=_module,
        metavar="MODULE",
        help="module of yours to import first, beside those of IMPORTS; may be given several times",
    )


class _Overrides(argparse.Action):
    """Takes the rest of the command line, and names what cannot be a part of it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        for number, text in enumerate(values or ()):
            # No key begins with a dash; a value may, being a negative number.
            if text.startswith("--") or (text.startswith("-") and number % 2 == 0):
                before = f" (it comes after {values[0]})" if values and number else ""
                parser.error(f"{text} is an option: options go before KEY VALUE{before}")
            if "=" in text and number % 2 == 0:
                parser.error(f"overrides are KEY VALUE, two words each, not {text}")
        setattr(namespace, self.dest, values)


def _module(text: str) -> str:
    """The type of `--import`."""
    if not MODULE.accepts(text):
        raise argparse.ArgumentTypeError(f"expected {MODULE.expected}, got {text}")
    return text


def whole(at_least: int, at_most: int = MAX_WHOLE) -> Callable[[str], int]:
    """The type of an option that takes an integer within limits."""
    rule = Whole(at_least, at_most)

    def parse(text: str) -> int:
        # Digits beyond those of any limit would only be counted.
        value = int(text) if re.fullmatch(r"[+-]?\d{1,30}", text) else None
        if not rule.accepts(value):
            raise argparse.ArgumentTypeError(f"expected {rule.expected}, got {text}")
        assert value is not None
        return value

    return parse


def number(**limits: float) -> Callable[[str], float]:
    """The type of an option that takes a finite number within the limits of `Number`."""
    rule = Number(**limits)

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not rule.accepts(value):
            raise argparse.ArgumentTypeError(f"expected {rule.expected}, got {text}")
        return value

    return parse


positive = number(above=0)


def byte_size(text: str) -> int:
    """The type of an option that takes a number of bytes: 500GB, 2TB, 1.5TiB; never 0."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?(?:([kmgtp])(i?))?b", text.lower(), re.ASCII)
    base = 1024 if found and found[3] else 1000
    size = int(float(found[1]) * base ** " kmgtp".index(found[2] or " ")) if found else 0
    if size == 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 500GB or 1.5TiB, got {text}")
    return size


def read_config(args: argparse.Namespace, reader: str) -> CfgNode:
    """Load the config that a command line names, for one of the commands of `configs.stock_keys`,
    and import the modules that either names.

    Raises:
        FileNotFoundError, ValueError: as `configs.loader.load_config`, of a key that the command
            would ignore, of a `MODEL.FAMILY` that is none, of an `OUTPUT_DIR` that cannot be one,
            and of an `OUTPUT_DIR` or `--output` in a cache.
    """
    from configs.loader import load_config
    from configs.stock_keys import refuse_ignored

    cfg = load_config(args.config_file, args.opts, args.imports)
    for option, place in (("OUTPUT_DIR", cfg.OUTPUT_DIR), ("--output", vars(args).get("output"))):
        if place:
            refuse_in_cache(option, place, cfg.CACHE.LOCATION)
    refuse_output_dir(cfg.OUTPUT_DIR)
    refuse_ignored(cfg, reader)
    if cfg.MODEL.FAMILY:
        from .families import find_family

        find_family(cfg)  # plain training would not ask
    return cfg


def run_command(command: Callable[[], int]) -> int:
    """Turn the errors a user can mend into one line and an exit code."""
    try:
        require_docstrings()
        return command()
    except _for_users() as error:
        say(f"error: {with_remedy(error, one_line(error))}")
        return 1
    except (MemoryError, RuntimeError) as error:
        if exhausted(error):
            say(f"error: {with_remedy(error, one_line(error))}")
            return 1
        if "out of memory" not in str(error):
            raise
        say(
            "error: the GPU is out of memory; lower SOLVER.IMS_PER_BATCH (and SOLVER.BASE_LR with "
            f"it), or INPUT.MAX_SIZE_TRAIN and VIEWS.MAX_SIZE or FIXED_SIZE ({one_line(error)})"
        )
        return 1
    except Interrupted as error:
        say(f"interrupted {error}")
        return 128 + error.number
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT


def require_docstrings() -> None:
    """Refuse a Python that keeps no docstrings, with which detectron2 cannot be imported.

    Raises:
        ValueError: it was started with -OO, or PYTHONOPTIMIZE=2.
    """
    if sys.flags.optimize > 1:
        raise ValueError(
            "python -OO, or PYTHONOPTIMIZE=2, leaves out the docstrings that detectron2 needs; "
            "expected at most -O: start it without"
        )


def _for_users() -> tuple[type[Exception], ...]:
    """`FOR_USERS`, and the error of a spawned rank, if anything here can spawn ranks by now."""
    spawn = sys.modules.get("torch.multiprocessing.spawn")
    return FOR_USERS if spawn is None else (*FOR_USERS, spawn.ProcessRaisedException)


def set_up(
    cfg: CfgNode, args: argparse.Namespace, use: Collection[str] = ("TRAIN", "TEST")
) -> None:
    """Register the data, start the log and save the resolved config beside the results.

    In the folder of a training, the config that is there stays: it may be that of another command.
    `use` is as for `register_data`.
    """
    from detectron2.utils import comm

    from storage.whole import write_whole

    from .datasets import require_fit
    from .run_record import CONFIG_NAME, RECORD_NAME

    warnings = register_data(cfg, use=use)
    require_fit(cfg, use)
    folder = Path(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
    _begin_log(cfg, args)
    kept = folder / CONFIG_NAME
    if comm.is_main_process() and not ((folder / RECORD_NAME).exists() and kept.exists()):
        write_whole(kept, cfg.dump())
    for warning in warnings:
        logger.warning("%s", warning)


def _begin_log(cfg: CfgNode, args: argparse.Namespace) -> None:
    """As detectron2's `default_setup`, which would overwrite `config.yaml` piece by piece, too."""
    import torch
    from detectron2.utils import comm
    from detectron2.utils.collect_env import collect_env_info
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.logger import setup_logger

    rank = comm.get_rank()
    for name in ("fvcore", "detectron2", "detectors", "stage2_distill"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    log = logging.getLogger("detectron2")
    log.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    log.info("Environment info:\n%s", collect_env_info())
    log.info("Command line arguments: %s", args)
    log.info("Running with full config:\n%s", cfg.dump())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def require_new_run(cfg: CfgNode, *, resume: bool) -> None:
    """See that a training does not write into the folder of another one, unless it goes on with it.

    A run that was stopped before it wrote metrics or a checkpoint is nothing to lose.

    Raises:
        ValueError: `OUTPUT_DIR` holds an earlier run; says what of it.
    """
    folder = Path(cfg.OUTPUT_DIR)
    found = [name for name in ("last_checkpoint", "metrics.json") if (folder / name).exists()]
    if found and not resume:
        raise ValueError(
            f"OUTPUT_DIR {folder} holds {' and '.join(found)} of an earlier run, and expected is a"
            " folder without one: go on with that run by --resume, or name another OUTPUT_DIR"
        )


def register_data(
    cfg: CfgNode, *, use: Collection[str] = ("TRAIN", "TEST"), images: bool = True
) -> list[str]:
    """Register the COCO-format folder that the config names, and see that all data can be used.

    Args:
        cfg: the config.
        use: which of DATASETS.TRAIN and DATASETS.TEST the command uses.
        images: whether it reads their images, which are looked for then.

    Returns:
        What the data are warned of, a line each.

    Raises:
        FileNotFoundError: the annotations or images of a dataset are missing.
        ValueError: no dataset of that name is known, its annotations are refused, the datasets
            have different categories, or one to evaluate on has no objects.
    """
    from .datasets import check_datasets

    return check_datasets(cfg, use=use, images=images)
