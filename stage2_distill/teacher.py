"""Where a step takes the teacher's outputs from: the cache, or the teacher itself.

Both give the same `TeacherBatch`; everything after it is one code path. A view is always decoded,
or run, at its own padded size, never at that of the batch: convolutions see the padding.

Shape letters: N images, K classes, R anchors an image, C channels, L levels, S positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from configs.schema import TeacherConfig
from detectors import DetectorFamily, Setup, load_model
from detectors.arithmetic import arithmetic
from storage import CacheReader, DecodedOutputs, Geometry

from .cache_check import check_pairing, open_cache
from .teacher_batch import (
    LevelSizes,
    TeacherBatch,
    TeacherGroup,
    assemble,
    split_levels,
)


class TeacherSource(Protocol):
    """Gives the teacher's outputs for a batch of views."""

    def outputs(
        self, batch: list[dict[str, Any]], level_sizes: LevelSizes, device: torch.device
    ) -> TeacherBatch:
        """Teacher outputs on the grid of the student's batch.

        Args:
            batch: N items of the loader.
            level_sizes: the L grids of the padded batch.
            device: where the step computes.
        """
        ...


class CachedTeacher:
    """Decodes the codes that the loader read, on the device of the step."""

    def __init__(self, reader: CacheReader, family: DetectorFamily, cfg: CfgNode) -> None:
        """Args:

        reader: the open cache; only its manifest is used here.
        family, cfg: of the teacher.
        """
        self._preset = reader.codec
        self._family = family
        self._cfg = cfg

    def outputs(
        self, batch: list[dict[str, Any]], level_sizes: LevelSizes, device: torch.device
    ) -> TeacherBatch:
        """See `TeacherSource`."""

        together = self._together(batch, level_sizes, device)
        if together is not None:
            return together

        def decode(positions: list[int], geometry: Geometry) -> DecodedOutputs:
            fields = batch[positions[0]]["codes"]
            codes = {
                name: torch.stack([batch[i]["codes"][name] for i in positions]).to(
                    device, non_blocking=True
                )
                for name in fields
            }
            return self._preset.decode(codes, geometry)

        return _by_padded_size(batch, level_sizes, self._family, self._cfg, decode)

    def _together(
        self, batch: list[dict[str, Any]], level_sizes: LevelSizes, device: torch.device
    ) -> TeacherBatch | None:
        """Decode views of several padded sizes at once, where the preset can; else None."""
        divisibility = self._family.size_divisibility(self._cfg)
        sizes = [padded_size(item["image"], divisibility) for item in batch]
        geometries = {size: self._family.geometry(self._cfg, *size) for size in set(sizes)}
        if len(geometries) == 1:
            return None
        largest = max(h for h, _ in sizes), max(w for _, w in sizes)
        decoded = self._preset.decode_onto(
            [
                {name: one.to(device, non_blocking=True) for name, one in item["codes"].items()}
                for item in batch
            ],
            [geometries[size] for size in sizes],
            self._family.geometry(self._cfg, *largest),
        )
        if decoded is None:
            return None
        assert decoded.valid is not None
        return TeacherBatch(
            features=split_levels(decoded.features, level_sizes),
            probabilities=decoded.probabilities,
            deltas=decoded.deltas,
            valid=decoded.valid,
        )


class LiveTeacher:
    """Runs the teacher on the views of the batch, those of one padded size together.

    With one view a forward (TEACHER.BATCH 1) and the threads of Stage 1, its outputs are those of
    an exact cache bit by bit; larger batches move the last bits.
    """

    def __init__(
        self,
        model: nn.Module,
        family: DetectorFamily,
        cfg: CfgNode,
        *,
        student_format: str,
        config: TeacherConfig | None = None,
    ) -> None:
        """Args:

        model: the teacher in evaluation mode; not a part of the trained module.
        family, cfg: of the teacher.
        student_format: INPUT.FORMAT of the images in the batch.
        config: views in one forward, and its arithmetic; None: the defaults.
        """
        self._model = model.requires_grad_(False)
        self._family = family
        self._cfg = cfg
        self._flip_channels = student_format != cfg.INPUT.FORMAT
        config = config or TeacherConfig()
        self._batch = config.batch
        self._precision = config.precision

    @torch.no_grad()
    def outputs(
        self, batch: list[dict[str, Any]], level_sizes: LevelSizes, device: torch.device
    ) -> TeacherBatch:
        """See `TeacherSource`."""

        def run(positions: list[int], geometry: Geometry) -> DecodedOutputs:
            images = [batch[i]["image"] for i in positions]
            starts = range(0, len(images), self._batch)
            return _joined([self._run(images[i : i + self._batch], device) for i in starts])

        return _by_padded_size(batch, level_sizes, self._family, self._cfg, run)

    def _run(self, images: list[Tensor], device: torch.device) -> DecodedOutputs:
        """Outputs for (3, H, W) uint8 views of one padded size, as a lossless cache has them."""
        if self._flip_channels:
            images = [image.flip(0) for image in images]
        padded = self._family.preprocess(self._model, [{"image": x} for x in images])
        # Its own precision: the student's mixed precision does not reach the teacher.
        with arithmetic(self._precision, device):
            raw = self._family.run(self._model, padded).raw()
        return DecodedOutputs(
            features=raw.features.float(),
            probabilities=raw.logits.float().sigmoid(),
            deltas=raw.deltas.float(),
        )


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher of a run, checked against the student, nothing of it loaded yet.

    Attributes:
        cfg, family: the teacher's own.
        config: the node TEACHER of the student's.
        reader: its open cache; None when it runs live.
    """

    cfg: CfgNode
    family: DetectorFamily
    config: TeacherConfig
    reader: CacheReader | None

    def source(self, *, student_format: str) -> TeacherSource:
        """Make ready to give outputs; a live teacher is loaded here."""
        if self.reader is not None:
            return CachedTeacher(self.reader, self.family, self.cfg)
        return LiveTeacher(
            load_model(self.cfg),
            self.family,
            self.cfg,
            student_format=student_format,
            config=self.config,
        )


def open_teacher(
    setup: Setup, images: Sequence[dict[str, Any]], config: TeacherConfig | None = None
) -> Teacher | None:
    """Find the teacher that a student's config names; None with TEACHER.SOURCE none.

    Args:
        setup: of the student.
        images: that it is trained on, see `open_cache`.
        config: in place of its node TEACHER.

    Raises:
        FileNotFoundError: no such config, weights or cache.
        ValueError: teacher and student do not match, or the cache is not the one for this config.
    """
    config = config or setup.settings.teacher
    if config.source == "none":
        return None
    cfg = setup.trained_teacher_cfg if config.source == "live" else setup.teacher_cfg
    check_pairing(setup)
    reader = open_cache(setup, images) if config.source == "cache" else None
    return Teacher(cfg=cfg, family=setup.teacher_family, config=config, reader=reader)


def _joined(parts: list[DecodedOutputs]) -> DecodedOutputs:
    """The outputs of consecutive forwards as one."""
    if len(parts) == 1:
        return parts[0]
    names = ("features", "probabilities", "deltas")
    return DecodedOutputs(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


def _by_padded_size(
    batch: list[dict[str, Any]],
    level_sizes: LevelSizes,
    family: DetectorFamily,
    cfg: CfgNode,
    outputs_of: Callable[[list[int], Geometry], DecodedOutputs],
) -> TeacherBatch:
    """Get the outputs of the views of one padded size together, then put all on one grid."""
    members: dict[tuple[int, int], list[int]] = {}
    for position, item in enumerate(batch):
        size = padded_size(item["image"], family.size_divisibility(cfg))
        members.setdefault(size, []).append(position)

    def groups() -> Iterator[TeacherGroup]:
        for (height, width), positions in members.items():
            geometry = family.geometry(cfg, height, width)
            yield _group(positions, geometry, outputs_of(positions, geometry))

    return assemble(
        groups(),
        num_images=len(batch),
        level_sizes=level_sizes,
        num_anchors=family.geometry(cfg, *next(iter(members))).num_anchors,
    )


def _group(positions: list[int], geometry: Geometry, decoded: DecodedOutputs) -> TeacherGroup:
    return TeacherGroup(
        positions=positions,
        features=split_levels(decoded.features, geometry.level_sizes),
        probabilities=decoded.probabilities,
        deltas=decoded.deltas,
    )


def padded_size(image: Tensor, divisibility: int) -> tuple[int, int]:
    """Height and width, in pixels, that a (3, H, W) view is padded to on its own."""
    height, width = (-(-int(side) // divisibility) * divisibility for side in image.shape[-2:])
    return height, width
