"""What the commands of both stages share: arguments, set-up, launching and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch.multiprocessing.spawn import ProcessRaisedException

from storage import CacheError
from storage.resources import exhausted, with_remedy

if TYPE_CHECKING:
    from detectron2.config import CfgNode

Job = Callable[["CfgNode", argparse.Namespace], Any]


# What a user can mend; anything else is our own mistake and keeps its traceback. A missing module
# is an extra that was not installed.
_FOR_USERS = (
    CacheError,
    FloatingPointError,
    ModuleNotFoundError,
    OSError,
    ProcessRaisedException,
    ValueError,
)


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that detectron2 users know, the config among them."""
    add_config_arguments(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes on this machine, one for each GPU"
    )
    parser.add_argument("--num-machines", type=int, default=1, help="machines in all")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine")
    parser.add_argument(
        "--dist-url", default="auto", help="address of the first machine, tcp://host:port"
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """`--config-file` and the overrides behind it."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML config")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of config keys"
    )


def run_command(command: Callable[[], int]) -> int:
    """Turn the errors a user can mend into one line and an exit code."""
    try:
        return command()
    except _FOR_USERS as error:
        print(f"error: {with_remedy(error, one_line(error))}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if exhausted(error):
            print(f"error: {with_remedy(error, one_line(error))}", file=sys.stderr)
            return 1
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


def one_line(error: Exception) -> str:
    """The message of an error; of one from another process, without its traceback."""
    text = str(error).rstrip()
    if "Traceback" not in text:
        return text
    return text.splitlines()[-1].partition(": ")[2]


def launch_job(job: Job, cfg: CfgNode, args: argparse.Namespace) -> None:
    """Run `job(cfg, args)` on every rank: under torchrun as started, else as `--num-gpus` says."""
    _check_device(cfg)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join_torchrun(cfg)
        job(cfg, args)
        return
    from detectron2.engine import launch

    launch(job, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (cfg, args))


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Register the data, start the log and save the resolved config beside the results."""
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    register_data(cfg)
    default_setup(cfg, args)
    # default_setup gives detectron2's log its handlers; ours goes the same way.
    for name in ("detectors", "stage2_distill"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)


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


def _check_device(cfg: CfgNode) -> None:
    import torch

    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but PyTorch sees no CUDA device here; "
            "install a driver, or run on the CPU with: MODEL.DEVICE cpu"
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
