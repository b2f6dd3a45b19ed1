"""Everything that only a GPU can show, in one run of under ten minutes on an H100.

The environment, the tests marked `gpu`, then the speed of both stages with ResNet-101 and
ResNet-50 RetinaNets at 800x1344; then what a step waits for, what an image costs a data worker, and
the methods. The figures go to `benchmarks/results/`, one file a GPU model, with machine and date; a
part that fails or misses a limit does not stop the others.

The exit code is 0 only if all tests pass and all limits are reached; without a GPU it is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage.example import add_example

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SIZE = "800x1344"
LIMIT_SEC = 570.0
_DUMP = ("benchmarks.dump", "--device", "cuda", "--size", SIZE, "--no-plan", "--images", "192",
         "--rounds", "1", "--batch", "8", "--views")  # fmt: skip
_DISTILL = ("benchmarks.distill", "--device", "cuda", "--size", SIZE, "--workers", "4",
            "--no-memory")  # fmt: skip

_TRANSFERS = ("benchmarks.transfers", "--images", "2", "--mixed-only", "--presets", "balanced")
_DUMP_TRANSFERS = ("benchmarks.transfers", "--dump", "--images", "8", "--families", "retinanet",
                   "fcos", "faster_rcnn")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command of the run.

    Attributes:
        name: what it shows.
        command: module and arguments.
        has_rows: whether it writes rows with `--json`.
        hides_gpu: whether it must see none: it pretends to have one, or is about the CPU.
    """

    name: str
    command: tuple[str, ...]
    has_rows: bool = True
    hides_gpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a part gave: seconds, exit code, its rows, and the last lines that it printed."""

    name: str
    command: str
    seconds: float
    exit_code: int
    rows: list[dict[str, Any]]
    output: list[str]


def parts(folder: Path) -> list[Part]:
    """The commands in order; those of stage 2 share a cache, which the first of them writes."""
    both = (*_DISTILL, "--folder", str(folder / "distill"))
    # Collecting all tests would take longer than running these.
    files = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("test_*.py"))
             if "mark.gpu" in path.read_text()]  # fmt: skip
    tests = ("pytest", *files, "-m", "gpu", "-q", "-p", "no:cacheprovider")
    return [
        Part(name="tests", command=tests, has_rows=False),
        # The largest batch first: its cache holds enough images for the others.
        Part(name="step, batch 16, float32", command=(*both, "--batch", "16")),
        Part(name="step, batch 16, AMP", command=(*both, "--batch", "16", "--amp")),
        Part(name="step, batch 2, float32", command=(*both, "--batch", "2")),
        Part(name="step, batch 2, AMP", command=(*both, "--batch", "2", "--amp")),
        Part(name="dump, float32", command=(*_DUMP, "2")),
        Part(name="dump, bfloat16", command=(*_DUMP, "6", "--precision", "bfloat16")),
        # Not of the GPU, but of a machine with cores to spare, as the ratio of threads needs.
        Part(name="writers", command=("benchmarks.write_speed",)),
        Part(name="waits and launches", command=_TRANSFERS, hides_gpu=True),
        Part(name="waits and launches, dump", command=_DUMP_TRANSFERS, hides_gpu=True),
        Part(name="loader", command=("benchmarks.loader", "--rounds", "3"), hides_gpu=True),
        # Last, for it takes longest: what the time does not suffice for is cut off.
        Part(name="methods", command=("benchmarks.methods", "--device", "cuda", "--rounds", "5")),
    ]


def described() -> dict[str, Any]:
    """What the figures are from; tries each library on the GPU.

    Raises:
        RuntimeError: PyTorch or torchvision do not work on this GPU.
    """
    # Here, since they import PyTorch, which `--help` need not wait for.
    import torch
    import torchvision

    from detectors.origin import origin

    ones = torch.ones(64, 64, device="cuda")
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device="cuda")
    torchvision.ops.nms(boxes, ones[0, :1], 0.5)
    assert float((ones @ ones)[0, 0]) == 64
    found = origin()
    found["machine"] |= {
        "gpus": torch.cuda.device_count(),
        "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    return found


def run(part: Part, timeout_sec: float) -> Outcome:
    """Run one part in a process of its own; what it prints is shown as it comes."""
    print(f"== {part.name}: python -m {' '.join(part.command)}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        command = [sys.executable, "-m", *part.command]
        if part.has_rows:
            command += ["--json", str(rows)]
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if part.hides_gpu else {}
        code, lines = _shown(command, timeout_sec, hidden)
        found = json.loads(rows.read_text())["rows"] if rows.exists() else []
    # Kept are figures, not the paths of a machine.
    told = [line for line in lines[-40:] if not re.search(r"(^|[^\w.])/\w", line)]
    shown = " ".join(part.command[:1] if part.command[0] == "pytest" else part.command)
    return Outcome(
        name=part.name,
        command=f"python -m {re.sub(r'/[^ ]*/', '', shown)}",
        seconds=round(time.monotonic() - start, 1),
        exit_code=code,
        rows=found,
        output=told if part.has_rows else told[-1:],
    )


def _shown(
    command: list[str], timeout_sec: float, variables: Mapping[str, str]
) -> tuple[int, list[str]]:
    """Run a command, print its lines and keep them; past its time it is ended."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}
    process = subprocess.Popen(
        ["timeout", f"{timeout_sec:.0f}", *command], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    return process.wait(), lines


def _summary(outcome: Outcome) -> str:
    missed = sum(not row["reached"] for row in outcome.rows)
    said = f"{len(outcome.rows) - missed} of {len(outcome.rows)} limits reached"
    return f"{outcome.name:26} {outcome.seconds:6.1f} s  exit {outcome.exit_code}  " + (
        said if outcome.rows else (outcome.output or ["no output"])[-1]
    )


def main(argv: list[str] | None = None) -> int:
    """Run all parts and write their figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: benchmarks/results")
    parser.add_argument("--only", metavar="TEXT", default="", help="parts with this in their name")
    add_example(parser, "--only dump --output output/gpu")
    args = parser.parse_args(argv)
    import torch

    if not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here: nothing was measured", file=sys.stderr)
        return 1
    on = described()
    print(json.dumps(on), flush=True)
    end = time.monotonic() + LIMIT_SEC
    outcomes: list[Outcome] = []
    path = args.output / f"gpu_{re.sub('[^a-z0-9]+', '_', on['machine']['gpu'].lower())}.json"
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gid-gpu-") as folder:
        for part in parts(Path(folder)):
            if args.only not in part.name:
                continue
            outcomes.append(run(part, max(1.0, end - time.monotonic())))
            content = {**on, "parts": [asdict(one) for one in outcomes]}
            # After each part: what was measured stays, however the run ends.
            path.write_text(json.dumps(content, indent=1) + "\n")
    print("\n".join(map(_summary, outcomes)))
    print(f"figures: {path}")
    return 0 if all(one.exit_code == 0 for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
