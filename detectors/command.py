"""What the commands of both stages share: arguments, set-up, launching and exit codes."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from configs.rules import MAX_WHOLE, Whole
from storage import CacheError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

Job = Callable[["CfgNode", argparse.Namespace], Any]

# On one machine, and machines; more is a typing error.
MAX_PROCESSES = 1024

# What a user can mend; anything else is our own mistake and keeps its traceback. A missing module
# is an extra that was not installed.
_FOR_USERS: tuple[type[Exception], ...] = (
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
    """`--config-file` and the overrides behind it."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML config")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        action=_Overrides,
        metavar="KEY VALUE",
        help="overrides of config keys, behind all options",
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


def positive(text: str) -> float:
    """The type of an option that takes a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def read_config(args: argparse.Namespace, reader: str) -> CfgNode:
    """Load the config that a command line names, for one of the commands of `configs.stock_keys`.

    Raises:
        FileNotFoundError, ValueError: as `configs.loader.load_config`, and of a key that the
            command would ignore.
    """
    from configs.loader import load_config
    from configs.stock_keys import refuse_ignored

    cfg = load_config(args.config_file, args.opts)
    refuse_ignored(cfg, reader)
    return cfg


def without_evaluation(cfg: CfgNode) -> CfgNode:
    """A copy without DATASETS.TEST, for commands that evaluate nothing and need not have them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ()
    cfg.freeze()
    return cfg


def run_command(command: Callable[[], int]) -> int:
    """Turn the errors a user can mend into one line and an exit code."""
    try:
        return command()
    except _for_users() as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        print(
            "error: the GPU is out of memory; lower SOLVER.IMS_PER_BATCH (and SOLVER.BASE_LR with "
            f"it), or INPUT.MAX_SIZE_TRAIN and VIEWS.MAX_SIZE ({one_line(error)})",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1


def _for_users() -> tuple[type[Exception], ...]:
    """`_FOR_USERS`, and the error of a spawned rank, if anything here can spawn ranks by now."""
    spawn = sys.modules.get("torch.multiprocessing.spawn")
    return _FOR_USERS if spawn is None else (*_FOR_USERS, spawn.ProcessRaisedException)


def one_line(error: Exception) -> str:
    """The message of an error; of one from another process, without its traceback."""
    text = str(error).rstrip()
    if "Traceback" not in text:
        return text
    return text.splitlines()[-1].partition(": ")[2]


def launch_job(job: Job, cfg: CfgNode, args: argparse.Namespace) -> None:
    """Run `job(cfg, args)` on every rank: under torchrun as started, else as `--num-gpus` says."""
    _check_processes(args)
    _check_device(cfg, args.num_gpus)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join_torchrun(cfg)
        job(cfg, args)
        return
    from detectron2.engine import launch

    launch(job, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (cfg, args))


def set_up(cfg: CfgNode, args: argparse.Namespace, *, evaluates: bool = True) -> None:
    """Register the data, start the log and save the resolved config beside the results."""
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    register_data(cfg if evaluates else without_evaluation(cfg))
    default_setup(cfg, args)
    # default_setup gives detectron2's log its handlers; ours goes the same way.
    for name in ("detectors", "stage2_distill"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    # Adding the same function again does nothing.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Shorten what detectron2's loop logs of an error that a user can mend to its message."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, _FOR_USERS):
        record.exc_info = record.exc_text = None
        record.msg, record.args = "%s %s", (record.getMessage(), one_line(error))
    return True


def register_data(cfg: CfgNode) -> None:
    """Register the COCO-format folder that the config names, and see that all data is there.

    Raises:
        FileNotFoundError: the annotations or the images of a dataset are missing.
        ValueError: no dataset of that name is known.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from dataset.registry import locate, register_folder

    if cfg.DATASET.FOLDER:
        register_folder(cfg.DATASET.FOLDER)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        # A dataset that a user's own code registered need not be a COCO file.
        if name not in DatasetCatalog or MetadataCatalog.get(name).get("evaluator_type") == "coco":
            locate(name)


def _check_processes(args: argparse.Namespace) -> None:
    """See that the options that start processes fit each other and the launcher."""
    ours = {"--num-gpus": args.num_gpus, "--num-machines": args.num_machines}
    stated = [name for name, count in ours.items() if count > 1]
    if stated and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(f"{stated[0]}: this is already a rank of torchrun; leave the option out")
    if args.machine_rank >= args.num_machines:
        raise ValueError(
            f"--machine-rank {args.machine_rank}: expected less than --num-machines "
            f"{args.num_machines}; machines count from 0"
        )
    if args.num_machines > 1 and not re.fullmatch(r"tcp://[^/]+:\d{1,5}|file:///.+", args.dist_url):
        raise ValueError(
            f"--dist-url {args.dist_url}: expected tcp://host:port of the first machine, since "
            f"--num-machines is {args.num_machines}"
        )


def _check_device(cfg: CfgNode, num_processes: int) -> None:
    import torch

    name = cfg.MODEL.DEVICE
    if not name.startswith("cuda"):
        return
    if not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {name}, but PyTorch sees no CUDA device here; "
            "install a driver, or run on the CPU with: MODEL.DEVICE cpu"
        )
    count, number = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
    if number >= count:
        raise ValueError(f"MODEL.DEVICE is {name}, but PyTorch sees {count} GPUs, from cuda:0")
    if num_processes > count:
        raise ValueError(f"--num-gpus {num_processes}: PyTorch sees {count} GPUs on this machine")
    if num_processes > 1 and ":" in name:
        raise ValueError(
            f"MODEL.DEVICE is {name}, one GPU for all of --num-gpus {num_processes}; set it to cuda"
        )


def _join_torchrun(cfg: CfgNode) -> None:
    import torch
    import torch.distributed as dist
    from detectron2.utils import comm

    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=30))
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
