"""Speed of stage 2: a student's step from the cache, on ground truth alone, and with the teacher.

ResNet-101 teaches ResNet-50, both RetinaNets with 80 classes and 256 channels as in the configs for
COCO, with random weights. The three students take turns, step by step, in one process, so that
whatever else the machine does falls on all of them alike; compared are their median steps. How long
the cache's student waits for data is measured behind that, while it trains alone: between turns its
data workers would have the others' time too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from detectors.command import register_data
from storage.example import add_example

from .pipeline import CONFIGS, Pipeline
from .rows import Row, conclude
from .scenes import ViewSize, view_size, write_scenes

if TYPE_CHECKING:
    from torch import nn

    from stage2_distill.trainer import DistillTrainer

# PyTorch and detectron2 are imported where they are used, so that `--help` need not wait for them.

SOURCES = ("none", "cache", "live")
# Of a step with the cache over one on ground truth alone.
STEP_LIMIT = {"cpu": 1.15, "cuda": 1.10}
# Blocking transfers of a distilling step on a GPU, beyond those on ground truth alone.
TRANSFERS_LIMIT = 8
# A wide COCO photograph: one of the largest views that the shipped configs know.
LARGE = (800, 1333)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure.

    Attributes:
        folder: where data, weights, cache and configs are.
        preset: of the cache.
        size: height and width of the views, pixels.
        batch: images a step.
        device: `cpu` or `cuda`.
        amp: whether the student trains in mixed precision.
        workers: processes that read, for each student.
        memory: whether peak memory is measured too, in processes of its own.
        rounds: steps of each student that are measured, behind `warmup` that are not.
        warmup: also fills the queues of the data workers.
    """

    folder: Path
    preset: str
    size: ViewSize
    batch: int
    device: str
    amp: bool
    workers: int
    memory: bool
    rounds: int
    warmup: int


@dataclass(kw_only=True)
class Student:
    """A trainer that takes one step when asked, and its times in seconds."""

    trainer: DistillTrainer
    steps: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def step(self) -> None:
        """Train one step and keep its time, waiting for data included."""
        from detectron2.utils.events import EventStorage

        loop = self.trainer._trainer
        loop.iter = len(self.steps)
        with EventStorage(loop.iter) as storage:
            _synchronise()
            start = time.perf_counter()
            loop.run_step()
            _synchronise()
            self.steps.append(time.perf_counter() - start)
            self.waits.append(storage.latest()["data_time"][0])

    def blocking_transfers(self) -> int:
        """Count where the host waits for the GPU in one more step, by PyTorch's own detector."""
        import torch

        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(one.message) for one in caught)


def measure(job: Settings) -> list[Row]:
    """Set up, take the steps in turn, and compare."""
    prepare(job)
    students = {source: Student(trainer=build(job, source)) for source in SOURCES}
    for number in range(job.warmup + job.rounds):
        # Nobody always follows the same one.
        for place in range(len(SOURCES)):
            students[SOURCES[(number + place) % len(SOURCES)]].step()
    times = {source: np.array(one.steps[job.warmup :]) for source, one in students.items()}
    typical = {source: float(np.median(seconds)) for source, seconds in times.items()}
    for source, seconds in typical.items():
        print(f"{source:>6}: {seconds:.3f} s a step")
    waited = waiting_share(students["cache"], job)
    selection = selection_share(students["live"].trainer)
    rows = [
        Row(
            name="step, cache / ground truth only",
            value=typical["cache"] / typical["none"],
            limit=STEP_LIMIT[job.device],
        ),
        Row(
            name="step, cache / live teacher",
            value=typical["cache"] / typical["live"],
            limit=0.75,
        ),
        Row(name="waiting for data, share of the cache's steps", value=float(waited), limit=0.02),
        Row(name="selection, share of a step at 800x1344", value=selection, limit=0.03),
    ]
    if job.device == "cuda":
        rows.append(transfers_row(students))
    del students
    return [*rows, memory_row(job)] if job.memory else rows


def waiting_share(student: Student, job: Settings) -> float:
    """Time that a student waits for data while it trains alone, over that of its steps."""
    # As many steps again first: what lies ready since the turns is used up.
    for _ in range(job.warmup + 2 * job.rounds):
        student.step()
    return sum(student.waits[-job.rounds :]) / sum(student.steps[-job.rounds :])


def prepare(job: Settings) -> None:
    """Write images, random weights, configs and the cache, with the commands that users have.

    Raises:
        ValueError: the folder holds those of other settings, or a part of them.
    """
    from detectors import export_model

    wanted = {"preset": job.preset, "size": list(job.size), "device": job.device}
    prepared = job.folder / "prepared.json"
    if prepared.exists():
        found = json.loads(prepared.read_text())
        if found != wanted:
            raise ValueError(f"{job.folder}: holds {found}, not {wanted}; name another --folder")
        return
    if (job.folder / "cache").exists():
        raise ValueError(f"{job.folder}: its cache was not finished; remove the folder")
    pipeline = Pipeline(folder=job.folder, data=job.folder / "data")
    write_scenes(pipeline.data, 6 * job.batch, job.size)
    for name, base in (
        ("teacher", "teacher/retinanet_r101_1x.yaml"),
        ("student", "student/retinanet_r50_2x.yaml"),
    ):
        path = _write(job, name, base, {})
        export_model(_random_model(path), job.folder / f"{name}.pth")
    views = {"NUM": 1, "SCALES": [min(job.size)], "MAX_SIZE": max(job.size)}
    _write(
        job, "distill", "distill/r50_2x_from_r101_1x.yaml",
        {
            "VIEWS": views,
            "TEACHER": {
                "CONFIG": str(job.folder / "teacher.yaml"),
                "WEIGHTS": str(job.folder / "teacher.pth"),
            },
            "CACHE": {"LOCATION": str(job.folder / "cache"), "PRESET": job.preset},
            # Random weights must not be led anywhere, least of all to infinity.
            "SOLVER": {"BASE_LR": 1e-12},
        },
    )  # fmt: skip
    pipeline.run("dump", "stage1_dump", "run", "--config-file", job.folder / "distill.yaml")
    prepared.write_text(json.dumps(wanted))


def build(job: Settings, source: str, *overrides: str) -> DistillTrainer:
    """One student, ready to step."""
    from configs.loader import load_config
    from stage2_distill.trainer import DistillTrainer

    cfg = load_config(
        str(job.folder / "distill.yaml"),
        [
            "TEACHER.SOURCE", source,
            "MODEL.WEIGHTS", str(job.folder / "student.pth"),
            "OUTPUT_DIR", str(job.folder / source),
            "SOLVER.IMS_PER_BATCH", job.batch,
            "SOLVER.AMP.ENABLED", job.amp,
            "DATALOADER.NUM_WORKERS", job.workers,
            *overrides,
        ],
    )  # fmt: skip
    register_data(cfg)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer


def selection_share(trainer: DistillTrainer) -> float:
    """Time of GISM over that of a step on one large view, the teacher's forward left out."""
    import torch
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    from stage2_distill.methods import gid

    height, width = LARGE
    instances = Instances(LARGE)
    instances.gt_boxes = Boxes(torch.tensor([[100.0, 100.0, 400.0, 500.0]]))
    instances.gt_classes = torch.tensor([0])
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    item = {"image": image, "image_id": 1, "view": 0}
    loop, source = trainer._trainer, trainer._trainer.model._source
    shares = []
    for _ in range(2):
        with (
            EventStorage(),
            _timed(gid, "propose") as selecting,
            _timed(source, "outputs") as teaching,
        ):
            start = time.perf_counter()
            losses = loop._forward([{**item, "instances": instances}])
            torch.stack(list(losses.values())).sum().backward()
            _synchronise()
            whole = time.perf_counter() - start
        shares.append(sum(selecting) / (whole - sum(teaching)))
    return median(shares)


def transfers_row(students: dict[str, Student]) -> Row:
    """Times that the host waits for the GPU in a distilling step, beyond one on ground truth."""
    counts = {source: students[source].blocking_transfers() for source in ("none", "cache")}
    print(f"the host waits for the GPU in a step: {counts}")
    return Row(
        name="waits for the GPU in a step, beyond ground truth alone",
        value=counts["cache"] - counts["none"],
        limit=TRANSFERS_LIMIT,
    )


def memory_row(job: Settings) -> Row:
    """Peak memory of a step with the cache, over that with the teacher live."""
    memory = {source: peak_memory(job, source) for source in SOURCES}
    for source, peak in memory.items():
        print(f"{source:>6}: {peak / 1e6:.0f} MB at most, in a process of its own")
    return Row(
        name="peak memory, cache / live teacher",
        value=memory["cache"] / memory["live"],
        limit=1.0,
    )


def peak_memory(job: Settings, source: str) -> float:
    """Bytes: what two steps take at most in a process of their own, on a GPU its own memory."""
    command = [
        sys.executable, "-m", "benchmarks.distill", "--folder", str(job.folder),
        "--size", "x".join(map(str, job.size)), "--batch", str(job.batch), "--device", job.device,
        *(["--amp"] if job.amp else []), "--memory-of", source,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table; 0 only if every number is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distill", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    parser.add_argument("--preset", default="balanced", help="of the cache, default: balanced")
    parser.add_argument(
        "--size", type=view_size, default=(320, 320), metavar="HxW",
        help="height and width of the views in pixels, default: 320 for both",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=2, help="images a step, default: 2")
    parser.add_argument("--rounds", type=int, default=9, help="steps measured, default: 9")
    parser.add_argument("--device", choices=tuple(STEP_LIMIT), default="cpu")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--workers", type=int, default=1, help="readers a student, default: 1")
    parser.add_argument(
        "--folder", type=Path, help="keep everything there, and use the cache that is there"
    )
    parser.add_argument("--memory-of", choices=SOURCES, help=argparse.SUPPRESS)
    add_example(parser, "--preset compact --size 320 --batch 2")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        job = Settings(
            folder=(args.folder or Path(temporary)).absolute(), preset=args.preset, size=args.size,
            batch=args.batch, device=args.device, amp=args.amp, workers=args.workers,
            memory=not args.no_memory, rounds=args.rounds, warmup=3,
        )  # fmt: skip
        if args.memory_of:
            print(_own_peak(job, args.memory_of))
            return 0
        try:
            rows = measure(job)
        except ValueError as error:
            parser.error(str(error))
    return conclude(rows, args.json)


def _own_peak(job: Settings, source: str) -> int:
    import torch

    with redirect_stdout(sys.stderr):
        student = Student(trainer=build(job, source))
        for _ in range(2):
            student.step()
    if job.device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not getrusage: there a process begins with the peak of the one that started it.
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) * 1024


def _write(job: Settings, name: str, base: str, content: dict[str, Any]) -> Path:
    """Write a config on top of a shipped one."""
    common = {
        "_BASE_": str(CONFIGS / base),
        "MODEL": {"DEVICE": job.device, "WEIGHTS": ""},
        "DATASET": {"FOLDER": str(job.folder / "data")},
        "DATASETS": {"TRAIN": ["folder_train"], "TEST": ["folder_val"]},
        "VERSION": 2,
    }
    path = job.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**common, **content}))
    return path


def _random_model(path: Path) -> nn.Module:
    """An untrained detector; small residual branches keep its frozen layers from overflowing."""
    import torch
    from detectron2.modeling import build_model

    from configs.loader import load_config

    torch.manual_seed(0)
    model = build_model(load_config(str(path)))
    for name, tensor in model.state_dict().items():
        if name.endswith("conv3.norm.weight"):
            tensor.fill_(0.1)
    return model


@contextmanager
def _timed(owner: Any, name: str) -> Iterator[list[float]]:
    """Keep the seconds of every call of a function."""
    seconds: list[float] = []
    original: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        _synchronise()
        start = time.perf_counter()
        result = original(*args, **kwargs)
        _synchronise()
        seconds.append(time.perf_counter() - start)
        return result

    setattr(owner, name, timed)
    try:
        yield seconds
    finally:
        setattr(owner, name, original)


def _synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
