"""The families of detectors that the benchmarks train, and the configs of each."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Folders under `configs/`, each with a `teacher.yaml` and a `distill.yaml`.

    Attributes:
        synthetic: for the synthetic set, which the demo trains on; also the demo's output folder.
        photographs: for a few hundred photographs.
    """

    synthetic: str
    photographs: str


FAMILIES = {
    "retinanet": Folders(synthetic="demo", photographs="photographs"),
    "fcos": Folders(synthetic="demo_fcos", photographs="photographs_fcos"),
    "faster_rcnn": Folders(
        synthetic="demo_faster_rcnn", photographs="photographs_faster_rcnn"
    ),
}  # fmt: skip


def add_family(parser: argparse.ArgumentParser) -> None:
    """Let a command take the family of teacher and student."""
    parser.add_argument(
        "--family", choices=FAMILIES, default="retinanet", help="of teacher and student"
    )
