"""Where a step takes the teacher's outputs from: the cache, or the teacher itself.

Both give the same `TeacherBatch`; everything after it is one code path. A view is always decoded,
or run, at its own padded size, never at that of the batch: convolutions see the padding.

Shape letters: N images, K classes, R anchors an image, C channels, L levels, S positions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from configs.nodes import TeacherConfig
from detectors import DenseOutputs, Setup, load_model
from detectors.arithmetic import arithmetic
from detectors.stored import Stored
from storage import CacheReader, Geometry, RecordCodec

from .cache_check import open_cache
from .methods import DETECTIONS, Pair, check_methods, needs_of
from .teacher_batch import Grid, LevelSizes, TeacherBatch, assemble

logger = logging.getLogger(__name__)

# Of an item: the view without STUDENT_VIEWS, where these act and a live teacher may ask for it.
TEACHER_IMAGE = "teacher_image"


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

    def __init__(self, codec: RecordCodec, stored: Stored, kept: Sequence[int]) -> None:
        """Args: what decodes the records; what is used of which teacher; and the numbers of the
        stored levels that the student has too."""
        self._codec = codec
        self._stored = stored
        self._kept = kept

    def outputs(
        self, batch: list[dict[str, Any]], level_sizes: LevelSizes, device: torch.device
    ) -> TeacherBatch:
        """See `TeacherSource`."""
        geometries = [_geometry(self._stored, item["image"]) for item in batch]
        records = [
            {name: one.to(device, non_blocking=True) for name, one in item["codes"].items()}
            for item in batch
        ]
        grid = _grid(self._stored, geometries, level_sizes, self._kept, device)
        if grid.placing is not None:
            values = self._codec.decode_placed(records, grid.placing)
        else:
            codes = {name: torch.stack([one[name] for one in records]) for name in records[0]}
            values = self._codec.decode(codes, geometries[0])
        found = [item[DETECTIONS] for item in batch if DETECTIONS in item]
        return TeacherBatch.of_values(
            values,
            grid,
            num_anchors=_num_anchors(self._stored),
            detections=torch.stack(found).to(device, non_blocking=True) if found else None,
        )


class LiveTeacher:
    """Runs the teacher on the views of the batch, those of one padded size together.

    With one view a forward (TEACHER.BATCH 1) and the threads of Stage 1, its outputs are those of
    an exact cache bit by bit on a CPU; larger batches move the last bits. On a GPU it takes the
    dump's algorithms too, which was not compared.
    """

    def __init__(
        self,
        model: nn.Module,
        stored: Stored,
        kept: Sequence[int],
        *,
        student_format: str,
        config: TeacherConfig | None = None,
        with_detections: bool = False,
    ) -> None:
        """Args:

        model: the teacher in evaluation mode; not a part of the trained module.
        stored: what is wanted of its outputs.
        kept: numbers of the stored levels that the student has too.
        student_format: INPUT.FORMAT of the images in the batch.
        config: views in one forward, and its arithmetic; None: the defaults.
        with_detections: whether its final boxes are wanted too.
        """
        self._model = model.requires_grad_(False)
        self._stored = stored
        self._kept = kept
        self._with_detections = with_detections
        self._flip_channels = student_format != stored.cfg.INPUT.FORMAT
        config = config or TeacherConfig()
        self._batch = config.batch
        self._precision = config.precision

    @torch.no_grad()
    def outputs(
        self, batch: list[dict[str, Any]], level_sizes: LevelSizes, device: torch.device
    ) -> TeacherBatch:
        """See `TeacherSource`."""
        images = [_seen(item) for item in batch]
        geometries = [_geometry(self._stored, image) for image in images]
        records: dict[int, dict[str, Tensor]] = {}
        for geometry in dict.fromkeys(geometries):
            members = [place for place, one in enumerate(geometries) if one == geometry]
            for start in range(0, len(members), self._batch):
                places = members[start : start + self._batch]
                values = self._run([images[place] for place in places], device)
                for row, place in enumerate(places):
                    records[place] = {name: value[row] for name, value in values.items()}
        ordered = [records[place] for place in range(len(batch))]
        found = [one.pop(DETECTIONS) for one in ordered if DETECTIONS in one]
        grid = _grid(self._stored, geometries, level_sizes, self._kept, device)
        return TeacherBatch.of_values(
            assemble(ordered, self._stored.signals, grid),
            grid,
            num_anchors=_num_anchors(self._stored),
            detections=torch.stack(found) if found else None,
        )

    @torch.no_grad()
    def detections(self, item: dict[str, Any]) -> Tensor:
        """The teacher's final boxes for one item of the loader, as the rows of a record."""
        outputs = self._outputs([_seen(item)], next(self._model.parameters()).device)
        return self._detections(outputs.float())[0]

    def _outputs(self, images: list[Tensor], device: torch.device) -> DenseOutputs:
        if self._flip_channels:
            images = [image.flip(0) for image in images]
        # Its own precision: the student's mixed precision does not reach the teacher.
        with arithmetic(self._precision, device):
            return self._stored.family.run(self._model, [{"image": x} for x in images])

    def _run(self, images: list[Tensor], device: torch.device) -> dict[str, Tensor]:
        """Outputs for (3, H, W) uint8 views of one padded size, as a lossless cache has them."""
        outputs = self._outputs(images, device)
        values = self._stored.values(outputs)
        found = {one.name: values[one.name].float() for one in self._stored.signals}
        of_scores = [one.name for one in self._stored.signals if one.kind == "scores"]
        found |= {name: found[name].sigmoid() for name in of_scores}
        if self._with_detections:
            found[DETECTIONS] = self._detections(outputs.float())
        return found

    def _detections(self, outputs: DenseOutputs) -> Tensor:
        rows = self._stored.cfg.TEST.DETECTIONS_PER_IMAGE
        return self._stored.family.detections(self._model, outputs, rows)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher of a run, checked against the student, nothing of it loaded yet.

    Attributes:
        pair: teacher and student; what is used of the teacher is what the methods need, on the
            levels that there are.
        config: the node TEACHER of the student's.
        reader: its open cache; None when it runs live.
        needs: signal, or `DETECTIONS`, to the methods that read it.
    """

    pair: Pair
    config: TeacherConfig
    reader: CacheReader | None
    needs: Mapping[str, Sequence[str]]

    def source(self, *, student_format: str) -> TeacherSource:
        """Make ready to give outputs; a live teacher is loaded here."""
        stored, kept = self.pair.stored, self.pair.teacher_levels
        if self.reader is not None:
            return CachedTeacher(self.reader.codec, stored, kept)
        return LiveTeacher(
            load_model(stored.cfg),
            stored,
            kept,
            student_format=student_format,
            config=self.config,
            with_detections=DETECTIONS in self.needs,
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
        ValueError: teacher and student do not match, or the cache is not the one for this config,
            or lacks what the methods need.
    """
    config = config or setup.settings.teacher
    if config.source == "none":
        return None
    cfg = setup.trained_teacher_cfg if config.source == "live" else setup.teacher_cfg
    check_methods(setup)
    if setup.class_map is not None:
        logger.info("TEACHER.CLASSES: the student has %s", setup.class_map)
    reader = open_cache(setup, images) if config.source == "cache" else None
    needs = needs_of(setup)
    levels = tuple(reader.manifest.levels if reader else setup.stored.levels)
    stored = Stored.of(cfg, setup.teacher_family, levels=levels)
    used = tuple(one for one in stored.signals if one.name in needs)
    pair = Pair.of(setup, replace(stored, signals=used))
    return Teacher(pair=pair, config=config, reader=reader, needs=needs)


def _grid(
    stored: Stored,
    geometries: Sequence[Geometry],
    level_sizes: LevelSizes,
    kept: Sequence[int],
    device: torch.device,
) -> Grid:
    """Where records lie on the student's levels; final boxes alone lie on none of them."""
    if not stored.signals:
        level_sizes, kept = (), ()
    return Grid(geometries, level_sizes, kept, device)


def _num_anchors(stored: Stored) -> int:
    """Anchors per position, of scores and deltas where they are stored; 0 where nothing has any."""
    counts = {one.name: one.sizes["anchors"] for one in stored.signals if "anchors" in one.sizes}
    # A family of the user's may name others first, with fewer places.
    return next((counts[name] for name in ("scores", "deltas", *counts) if name in counts), 0)


def _seen(item: dict[str, Any]) -> Tensor:
    """The view as the teacher sees it, without what is done to it for the student."""
    image: Tensor = item.get(TEACHER_IMAGE, item["image"])
    return image


def _geometry(stored: Stored, image: Tensor) -> Geometry:
    """Grids of a (3, H, W) view that is padded on its own."""
    return stored.geometry(*padded_size(image, stored.size_divisibility))


def padded_size(image: Tensor, divisibility: int) -> tuple[int, int]:
    """Height and width, in pixels, that a (3, H, W) view is padded to on its own."""
    height, width = (-(-int(side) // divisibility) * divisibility for side in image.shape[-2:])
    return height, width
