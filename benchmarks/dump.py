"""Speed of stage 1: what a dump costs beyond the teacher's forward, and how it scales with ranks.

Side by side, in alternating rounds, over the same records (medians count):

- *forward*: `Teacher.run` alone, on views that are in memory already: normalise, pad, backbone and
  head. Everything else of a dump is on top: reading, rendering, final boxes, encoding, claims,
  compressing, writing, syncing, reading back, committing.
- *dump*: one rank, from its first claim to its last commit; loading the teacher is left out, as it
  is paid once for a whole data set.
- *two ranks*: the same dump by two ranks. Each counts from its own first claim, as the teachers
  are not loaded at the same moment, to the last commit of all; the mean of the two.

The teacher is the shipped ResNet-101 RetinaNet of 80 classes with seeded weights, its scores spread
so that some hundred boxes pass the threshold; drawn images of 480 px (`benchmarks/scenes.py`),
views of 320 px unless `--size` says otherwise, preset `balanced`. On a CPU every rank has one core,
its writers included, one thread of arithmetic and no image workers: ranks then are as many as
cores, as in a real dump. The plan of COCO's size (`benchmarks/plan_speed.py`) is measured at the
end. The exit code is 0 only if all is reached.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

from configs.nodes import TeacherConfig
from storage.example import add_example

from . import plan_speed
from .rows import Row, conclude
from .scenes import ViewSize, view_size, write_scenes

# PyTorch is imported where it is used, so that `--help` need not wait for it.

# Of a dump over the teacher's forward, by device and precision.
OVERHEAD_LIMIT = {"cpu": 1.15, "cuda": 1.10}
HALF_OVERHEAD_LIMIT = 1.25
EFFICIENCY_LIMIT = 0.9
# On one core, a worker process would only take turns with the teacher.
NUM_WORKERS = {"cpu": 0, "cuda": 12}

TEACHER = Path(__file__).parent.parent / "configs/teacher/retinanet_r101_1x.yaml"
# Of the logits. With the detector's prior of 0.01, about a thousand scores in two million then
# pass the threshold of 0.05, as with a trained teacher.
_LOGIT_STD = 0.5


@dataclass(frozen=True, kw_only=True)
class Spent:
    """A piece of work: when it began and ended (seconds since 1970), its CPU time, its profile."""

    start: float
    end: float
    cpu_sec: float = 0.0
    profile: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured: a folder to work in, images and views of each, size in pixels, device."""

    folder: Path
    images: int
    views: int
    size: ViewSize
    batch: int
    device: str
    precision: str

    @property
    def config(self) -> Path:
        """The config of the dump."""
        return self.folder / "dump.yaml"


@dataclass(kw_only=True)
class Runs:
    """What was measured, one entry a round; `together` stays empty with a single GPU."""

    forward: list[Spent] = field(default_factory=list)
    dump: list[Spent] = field(default_factory=list)
    together: list[Spent] = field(default_factory=list)

    def round(self, setting: Setting) -> str:
        """Measure once more each; return a line."""
        import torch

        self.forward += _in_processes(_forward, setting, 1)
        self.dump += _in_processes(_dump, setting, 1)
        if setting.device == "cpu" or torch.cuda.device_count() > 1:
            ranks = _in_processes(_dump, setting, 2)
            start = statistics.mean(one.start for one in ranks)
            cpu_sec = sum(one.cpu_sec for one in ranks)
            self.together.append(Spent(start=start, end=_last_commit(setting), cpu_sec=cpu_sec))
        return ", ".join(f"{name} {runs[-1].seconds:.1f} s" for name, runs in self._named)

    def cpu_times(self) -> str:
        """A line: what the elapsed times would be beside no other work, if nothing waited."""
        times = [
            f"{name} {statistics.median(one.cpu_sec for one in runs):.1f} s"
            for name, runs in self._named
        ]
        return f"CPU time: {', '.join(times)}"

    def rows(self, setting: Setting) -> list[Row]:
        """The ratios of the medians."""
        in_half = setting.precision in ("bfloat16", "float16")
        limit = HALF_OVERHEAD_LIMIT if in_half else OVERHEAD_LIMIT[setting.device]
        seconds = {
            name: statistics.median(one.seconds for one in runs) for name, runs in self._named
        }
        overhead = seconds["dump"] / seconds["forward"]
        rows = [Row(name="dump time / forward time", value=overhead, limit=limit)]
        if self.together:
            rows.append(
                Row(
                    name="efficiency of two ranks",
                    value=seconds["dump"] / (2 * seconds["two ranks"]),
                    limit=EFFICIENCY_LIMIT,
                    at_least=True,
                )
            )
        return rows

    @property
    def _named(self) -> list[tuple[str, list[Spent]]]:
        named = [("forward", self.forward), ("dump", self.dump), ("two ranks", self.together)]
        return [(name, runs) for name, runs in named if runs]


def measure(setting: Setting, rounds: int) -> list[Row]:
    """Measure in alternating rounds; prints each, and the profile of the last dump."""
    prepare(setting)
    runs = Runs()
    for number in range(rounds):
        print(f"round {number + 1}: {runs.round(setting)}", flush=True)
    print(runs.dump[-1].profile)
    print(runs.cpu_times())
    return runs.rows(setting)


def prepare(setting: Setting) -> None:
    """Write images, teacher and config."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    write_scenes(setting.folder / "data", setting.images, setting.size)
    _in_processes(_write_teacher, setting, 1)
    content: dict[str, Any] = {
        "VERSION": 2,
        "MODEL": {"DEVICE": setting.device},
        "DATASET": {"FOLDER": str(setting.folder / "data")},
        "DATASETS": {"TRAIN": ["folder_train"]},
        "DATALOADER": {"NUM_WORKERS": NUM_WORKERS[setting.device]},
        "VIEWS": {
            "NUM": setting.views,
            "SCALES": [min(setting.size)],
            "MAX_SIZE": max(setting.size),
        },
        "TEACHER": {
            "CONFIG": str(TEACHER),
            "WEIGHTS": str(setting.folder / "teacher.pth"),
            "BATCH": setting.batch,
            "PRECISION": setting.precision,
        },
        "CACHE": {"LOCATION": str(setting.folder / "cache"), "SHARD_RECORDS": 4 * setting.batch},
    }
    setting.config.write_text(yaml.safe_dump(content))


def _last_commit(setting: Setting) -> float:
    commits = (setting.folder / "cache" / "commits").rglob("*.json")
    return max(path.stat().st_mtime for path in commits)


def _in_processes(work: Any, setting: Setting, count: int) -> list[Any]:
    """Run `work(setting, rank, count)` in new processes at the same time; return their results.

    Each has its own settings of PyTorch, its own CUDA context, and on a CPU its own core.
    """
    context = get_context("spawn")
    pairs = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_run, args=(work, setting, rank, count, pairs[rank][1]))
        for rank in range(count)
    ]
    shutil.rmtree(setting.folder / "cache", ignore_errors=True)
    for process in processes:
        process.start()
    for _, ours in pairs:
        ours.close()
    try:
        return [results.recv() for results, _ in pairs]
    except EOFError:
        raise RuntimeError(f"{work.__name__.strip('_')}: a process failed, see above") from None
    finally:
        for process in processes:
            process.join()


def _run(work: Any, setting: Setting, rank: int, count: int, results: Connection) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    if setting.device == "cpu":
        cores = sorted(os.sched_getaffinity(0))
        # The last core for one rank: the first is where machines do their own work.
        os.sched_setaffinity(0, {cores[-1 - rank % len(cores)]})
    import torch

    torch.set_num_threads(1)
    results.send(work(setting, rank, count))


def _write_teacher(setting: Setting, rank: int, count: int) -> None:
    """Write the shipped teacher with seeded weights of the sizes that training gives them."""
    import torch
    from detectron2.data.detection_utils import read_image
    from detectron2.modeling import build_model

    from configs.loader import load_config
    from detectors import export_model, family_of

    cfg = load_config(str(TEACHER), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, buffer in model.named_buffers():
        # Small residual branches keep a hundred untrained layers from growing without bounds.
        if name.endswith("conv3.norm.weight"):
            buffer.fill_(0.2)
    image = min((setting.folder / "data" / "images").iterdir())
    sample = torch.from_numpy(read_image(str(image), "BGR").copy()).permute(2, 0, 1)
    with torch.no_grad():
        outputs = family_of(cfg).run(model, [{"image": sample}])
        model.head.cls_score.weight.mul_(_LOGIT_STD / outputs.logits.std())
    export_model(model, setting.folder / "teacher.pth")


def _forward(setting: Setting, rank: int, count: int) -> Spent:
    """The teacher's forward alone, over the batches of the dump, rendered before."""
    import torch

    from configs.loader import load_config
    from stage1_dump.images import RecordImages, make_loader
    from stage1_dump.numerics import fixed_numerics
    from stage1_dump.prepare import prepare as prepare_dump
    from stage1_dump.ranks import current_rank, pick_device
    from stage1_dump.teacher import load_teacher

    cfg = load_config(str(setting.config))
    prepared = prepare_dump(cfg)
    device = pick_device(cfg.MODEL.DEVICE, current_rank(os.environ))
    with fixed_numerics(prepared.settings.teacher, device):
        teacher = load_teacher(
            prepared.setup.stored, device, precision=setting.precision, codec=prepared.codec()
        )
        table = prepared.table
        batches = [
            records[first : first + setting.batch]
            for records in (table.records_of(shard).tolist() for shard in table.shards)
            for first in range(0, len(records), setting.batch)
        ]
        loader = make_loader(
            RecordImages(prepared), batches,
            batch=setting.batch, num_workers=0, device=device, forked=True,
        )  # fmt: skip
        rendered = list(loader)
        if device.type == "cuda":
            teacher.run(rendered[0].images(device))
        start, cpu_start = time.time(), time.process_time()
        for batch in rendered:
            teacher.run(batch.images(device))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return Spent(start=start, end=time.time(), cpu_sec=time.process_time() - cpu_start)


def _dump(setting: Setting, rank: int, count: int) -> Spent:
    """The dump, as one of `count` ranks."""
    from configs.loader import load_config
    from stage1_dump.dump import run

    report = run(load_config(str(setting.config)))
    end = time.time()
    return Spent(
        start=end - report.elapsed_sec,
        end=end,
        cpu_sec=report.cpu_sec,
        profile=str(report.shares),
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table; 0 only if every number is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dump", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--images", type=int, default=64, help="images of a dump, default: 64")
    parser.add_argument("--views", type=int, default=1, help="records of each, default: 1")
    parser.add_argument(
        "--size", type=view_size, default=(320, 320), metavar="HxW",
        help="height and width of the views in pixels, default: 320 for both",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=2, help="views in a forward, default: 2")
    parser.add_argument("--device", choices=tuple(OVERHEAD_LIMIT), default="cpu")
    parser.add_argument(
        "--precision", choices=TeacherConfig.PRECISIONS, default="float32",
        help="TEACHER.PRECISION, default: float32",
    )  # fmt: skip
    parser.add_argument("--no-plan", action="store_true", help="leave the plan of COCO out")
    add_example(parser, "--size 320 --batch 2 --no-plan")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="gid-dump-") as folder:
        setting = Setting(
            folder=Path(folder),
            images=args.images,
            views=args.views,
            size=args.size,
            batch=args.batch,
            device=args.device,
            precision=args.precision,
        )
        rows = measure(setting, args.rounds)
        if not args.no_plan:
            rows += plan_speed.measure(Path(folder) / "plan")
    return conclude(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
