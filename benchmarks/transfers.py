"""How often a distilling step or a dump waits for the GPU, and what it launches; needs no GPU.

Counted on a pretended one (`pretended_gpu`), with narrow ResNet-50 detectors on small views:
neither depends on widths or sizes. Given is what distillation adds to the same step on ground truth
alone, whose own waits and launches are stock detectron2's; or, with `--dump`, what follows the
teacher's forward in a batch of a dump: encoding in preset `balanced`, and final boxes. `--lines`
shows where they come from.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product, starmap
from pathlib import Path

from storage.example import add_example

from .families import FAMILIES
from .rows import Row, conclude

PRESETS = ("exact", "balanced", "compact")
METHODS = ("gid",)


def main(argv: list[str] | None = None) -> int:
    """Count, print the table; 0 only if every limit is kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfers", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    parser.add_argument("--images", type=int, nargs="+", default=[2, 16], help="default: 2 16")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), help="default: all")
    parser.add_argument(
        "--families", nargs="+", choices=FAMILIES, default=["retinanet"],
        help="default: retinanet",
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="default: gid")
    parser.add_argument("--dump", action="store_true", help="count batches of a dump instead")
    parser.add_argument("--mixed-only", action="store_true", help="batches of mixed sizes alone")
    parser.add_argument("--lines", action="store_true", help="show where they come from")
    add_example(parser, "--images 2 --presets balanced --lines")
    args = parser.parse_args(argv)
    of_steps = (tuple(args.presets), tuple(args.methods), args.mixed_only)
    if args.dump and of_steps != (PRESETS, METHODS, False):
        parser.error("--presets, --methods and --mixed-only are about steps, not about --dump")
    # PyTorch is imported where it is used, so that `--help` need not wait for it.
    from .dump_counts import measure_dump
    from .step_counts import MIXED, SAME, Subject, measure

    rows: list[Row] = []
    if args.dump:
        for family, images in product(args.families, args.images):
            rows += measure_dump(family, images, lines=args.lines)
        return conclude(rows, args.json)
    for subject in starmap(Subject, product(args.methods, args.families)):
        for images in args.images:
            for sizes in (MIXED,) if args.mixed_only else (SAME, MIXED):
                rows += measure(subject, images, sizes, args.presets, lines=args.lines)
    return conclude(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
