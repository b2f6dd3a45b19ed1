"""A distilling step on a pretended GPU, and what it is counted to wait for and to launch.

See `transfers`, the command.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from configs.loader import load_config
from detectors import Setup
from detectors.stored import Stored
from stage2_distill.distiller import Distiller
from stage2_distill.methods import DETECTIONS, Pair, chosen_methods, needs_of
from stage2_distill.teacher import CachedTeacher
from storage import Geometry, RecordCodec, Signal, get_preset

from .pipeline import CONFIGS
from .pretended_gpu import GPU, LaunchCounter, PretendedGpu, uncompiled
from .rows import Row

# Blocking transfers of a distilling step beyond those on ground truth alone.
WAITS_LIMIT = 8
# A third of the 1,572 launches of a step of two images, when distillation went image by image and
# level by level.
LAUNCHES_LIMIT = 524
SAME = ((256, 320),)
CONFIG_NAMES = {
    "retinanet": "r50_2x_from_r101_1x.yaml",
    "fcos": "fcos_r50_2x_from_r101_1x.yaml",
    "faster_rcnn": "faster_rcnn_r50_2x_from_r101_1x.yaml",
}
NARROW = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.FPN.OUT_CHANNELS", 32,  # as many as group normalisation asks for
]  # fmt: skip
MIXED = ((256, 320), (256, 288), (224, 320), (192, 256), (256, 224))

Batch = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one step.

    Attributes:
        waits: of the host for the GPU, by kind and line.
        launches: of the forward pass, by line.
        backward: launches of the backward pass, counted on the CPU.
    """

    waits: Counter[tuple[str, str]]
    launches: Counter[str]
    backward: int


class Subject:
    """A student with random weights, and batches with random teachers."""

    def __init__(self, method: str = "gid", family: str = "retinanet") -> None:
        """Args: the method that distils, and the family of teacher and student."""
        self.method, self.family = method, family
        options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "CACHE.LOCATION", "nowhere", *NARROW]
        options += ["DISTILL.METHODS", str((method,))]
        path = CONFIGS / "distill" / CONFIG_NAMES[family]
        self.cfg: CfgNode = load_config(str(path), options)
        self._setup = Setup(self.cfg)
        self._stored = Stored.of(self.cfg, self._setup.family)
        self._needs = needs_of(self._setup)
        torch.manual_seed(0)
        self._detector = build_model(self.cfg)
        for name, tensor in self._detector.state_dict().items():
            if name.endswith("conv3.norm.weight"):
                tensor.fill_(0.1)  # else frozen layers overflow

    def step(self, images: int, sizes: tuple[tuple[int, int], ...], preset: str | None) -> Counts:
        """Count one step; without a preset, on ground truth alone."""
        torch.manual_seed(0)
        chosen = get_preset(preset or "balanced")
        codec = RecordCodec.of_preset(chosen, self._stored.signals, num_detections=1)
        batch = [self._item(sizes[i % len(sizes)], codec) for i in range(images)]
        pair = Pair.of(self._setup, self._stored)
        distiller = Distiller(
            # A module of its own: moving it to the pretended GPU replaces its parameters.
            copy.deepcopy(self._detector),
            self._setup,
            source=CachedTeacher(codec, self._stored, pair.teacher_levels) if preset else None,
            pair=pair,
            methods=[one(config, pair) for one, config in chosen_methods(self._setup)],
        ).train()
        backward = LaunchCounter()
        # Without compiling: what ran on the pretended GPU would be compiled for a real one.
        with uncompiled(), EventStorage():
            total = torch.stack(list(distiller(batch).values())).sum()
            with backward:
                total.backward()
        with PretendedGpu() as gpu, EventStorage():
            moved = distiller.to(GPU)
            on_gpu = [{key: _moved(value) for key, value in item.items()} for item in batch]
            moved(on_gpu)  # what is kept from step to step, such as anchors
            gpu.waits.clear()
            gpu.launches.clear()
            moved(on_gpu)
        return Counts(waits=gpu.waits, launches=gpu.launches, backward=backward.count)

    def _item(self, size: tuple[int, int], codec: RecordCodec) -> dict[str, Any]:
        """A view with seven objects, and a teacher that sees something at its smallest anchors."""
        height, width = size
        geometry = self._stored.geometry(height, width)
        corners = torch.rand(7, 2) * torch.tensor([width / 2, height / 2])
        sides = 8 + torch.rand(7, 2) * torch.tensor([width / 3, height / 3])
        truth = Instances(size)
        truth.gt_boxes = Boxes(torch.cat([corners, corners + sides], dim=1))
        truth.gt_classes = torch.randint(0, self._stored.num_classes, (7,))
        values = {one.name: _random(one, geometry) for one in self._stored.signals}
        codes = {
            name: field[0]
            for name, field in codec.encode(values, geometry).items()
            if name.partition(".")[0] in self._needs
        }
        # One that the teacher is sure of, beside the objects.
        detections = torch.tensor([[1.0, 1.0, 30.0, 30.0, 0.9, 0.0]])
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        return {"image": image, "instances": truth, "height": height, "width": width,
                "image_id": 1, "view": 0, "codes": codes, DETECTIONS: detections}  # fmt: skip


def _random(signal: Signal, geometry: Geometry) -> Tensor:
    """What a teacher might say of one view: (1, ...), of the signal's shape."""
    values = torch.randn(1, *signal.shape(geometry))
    if signal.kind == "scores":
        values -= 5
        values[:, : geometry.level_offsets[1] * signal.sizes["anchors"] : 97, -1] += 8
    elif signal.kind == "deltas":
        values *= 0.1
    elif signal.kind == "boxes":
        corners = torch.rand(1, signal.sizes["rows"], 2) * 100
        values = torch.cat([corners, corners + 20], dim=2)
    return values


def _moved(value: Any) -> Any:
    """What the loader has put on the GPU before the step."""
    if isinstance(value, dict):
        return {key: one.to(GPU) for key, one in value.items()}
    return value.to(GPU) if isinstance(value, torch.Tensor | Instances) else value


def measure(
    subject: Subject, images: int, sizes: tuple[tuple[int, int], ...], presets: list[str],
    *, lines: bool = False,
) -> list[Row]:  # fmt: skip
    """Count steps with each preset, beyond one on ground truth alone."""
    stock = _stock_step(subject.family, images, sizes)
    waits, launches = stock.waits.total(), stock.launches.total()
    rows = []
    for preset in presets:
        found = subject.step(images, sizes, preset)
        grid = "one size" if len(sizes) == 1 else "mixed sizes"
        name = f"{subject.family}, {subject.method}, {images} images of {grid}, {preset}"
        print(
            f"{name}: waits {waits} + {found.waits.total() - waits}, launches {launches} + "
            f"{found.launches.total() - launches} forward, {stock.backward} + "
            f"{found.backward - stock.backward} backward"
        )
        if lines:
            print_lines(found.waits - stock.waits, found.launches - stock.launches)
        rows += [
            Row(
                name=f"waits, {name}",
                value=found.waits.total() - waits,
                limit=WAITS_LIMIT,
            ),
            Row(
                name=f"launches forward, {name}",
                value=found.launches.total() - launches,
                limit=LAUNCHES_LIMIT,
            ),
        ]
    return rows


@lru_cache
def _stock_step(family: str, images: int, sizes: tuple[tuple[int, int], ...]) -> Counts:
    """On ground truth alone, which no method acts on."""
    return Subject(family=family).step(images, sizes, None)


def print_lines(waits: Counter[tuple[str, str]], launches: Counter[str]) -> None:
    """Print where they come from, most first."""
    for (kind, line), count in waits.most_common():
        print(f"{count:6} waits     {kind} {line}")
    for line, count in launches.most_common():
        print(f"{count:6} launches  {line}")
