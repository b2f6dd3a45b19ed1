"""What changing the colours of a view of 800x1344 costs: CPU time of a core, the least of many."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.views.brightness import Brightness
from dataset.views.colour import ONE, ColourStep, Pixels
from dataset.views.contrast import Contrast
from dataset.views.hue import Hue
from dataset.views.saturation import Saturation
from storage.example import add_example

from .rows import Row, conclude

SIZE = (800, 1344)
ROUNDS = 40
# The steps with a strength of each, in whole units.
FACTORS: dict[type[ColourStep], int] = {
    step: round(1.2 * ONE) for step in (Brightness, Contrast, Saturation)
}
TURN: dict[type[ColourStep], int] = {Hue: 60}
LIMIT_MS, LIMIT_WITH_HUE_MS = 8.0, 50.0


def measure(rounds: int = ROUNDS) -> list[Row]:
    """Time each step on one image, and print it."""
    pixels = _image()
    costs = dict.fromkeys((*FACTORS, *TURN), float("inf"))
    # In turn, so that other work on the machine meets all of them alike.
    for _ in range(rounds):
        for step, strength in (FACTORS | TURN).items():
            start = time.process_time()
            step.changed(strength, pixels)
            costs[step] = min(costs[step], time.process_time() - start)
    for step, seconds in costs.items():
        print(f"{step.name:12} {seconds * 1e3:6.2f} ms")
    return [
        _row("brightness, contrast and saturation", [costs[one] for one in FACTORS], LIMIT_MS),
        _row("those and hue", list(costs.values()), LIMIT_WITH_HUE_MS),
    ]


def _row(name: str, seconds: Sequence[float], limit: float) -> Row:
    size = "x".join(map(str, SIZE))
    return Row(name=f"{name}, {size}, ms of CPU", value=sum(seconds) * 1e3, limit=limit)


def _image() -> Pixels:
    """Smooth as photographs are: neighbours meet the same parts of a table."""
    noise = np.random.default_rng(0).integers(0, 256, (100, 168, 3), dtype=np.uint8)
    return np.array(Image.fromarray(noise).resize(SIZE[::-1], Image.Resampling.BILINEAR))


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0 only if every row is within its limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.colours", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    add_example(parser, "--json output/colours.json")
    args = parser.parse_args(argv)
    return conclude(measure(), args.json)


if __name__ == "__main__":
    sys.exit(main())
