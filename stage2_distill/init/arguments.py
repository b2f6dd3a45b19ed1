"""The command line of `init`; imports nothing that takes time."""

from __future__ import annotations

import argparse

from .families import KINDS

MODEL_ZOO = "model_zoo://"
_FIRST = next(iter(KINDS))


def add_init_arguments(parser: argparse.ArgumentParser) -> None:
    """What `init` takes."""
    parser.add_argument(
        "--data", required=True, metavar="FOLDER", type=_path,
        help="data in COCO's layout, with annotations/instances_train.json and instances_val.json, "
        "or in Roboflow's",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", type=_path,
        help="for teacher.yaml, student.yaml and distill.yaml",
    )  # fmt: skip
    parser.add_argument(
        "--family", default=_FIRST,
        help=f"kind of both detectors: {', '.join(KINDS)} (default: {_FIRST})",
    )  # fmt: skip
    parser.add_argument(
        "--teacher", metavar="NAME",
        help="detector that the teacher goes on from, such as "
        f"{MODEL_ZOO}COCO-Detection/retinanet_R_101_FPN_3x.yaml; default: an R101 from ImageNet",
    )  # fmt: skip


def _path(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected the path of a folder, got nothing")
    return text.rstrip("/") or "/"
