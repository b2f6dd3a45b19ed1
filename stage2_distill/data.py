"""The training data of Stage 2: a view, its ground truth and the teacher's codes for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from configs.nodes import ViewsConfig
from dataset.views import Augmentation, RenderedView, plan_view, render
from dataset.views.objects import view_objects
from detectors import Setup, to_model_image
from detectors.packing import pack_in_worker
from detectors.workers import Watched
from storage import CacheReader

from .methods import DETECTIONS, needs_of
from .pixels import PixelCheck
from .prefetch import DeviceLoader, PartSampler, plan_lead
from .sampler import Draw, Unlabelled, ViewBatchSampler
from .student_views import student_augmentation
from .teacher import TEACHER_IMAGE


@dataclass(frozen=True, kw_only=True)
class DataParts:
    """What a training run needs of its data: the loader, and the sampler that it resumes by."""

    loader: DeviceLoader
    sampler: ViewBatchSampler


class ViewDataset(Dataset[dict[str, Any]]):
    """Annotated images, each under any of its views, with the teacher's codes where cached.

    An item is detectron2's input dict (`image`, `instances`, `height`, `width`, `image_id`,
    `file_name`) with `view` and whether it is `unlabelled`, and, from the cache, `codes`: field
    name to array, and `detections` where a method needs them. With STUDENT_VIEWS `image` is the
    student's alone, and `teacher_image` what the teacher sees.
    """

    def __init__(
        self,
        images: list[dict[str, Any]],
        setup: Setup,
        reader: CacheReader | None,
        *,
        for_live: bool = True,
    ) -> None:
        """Args:

        images: detectron2's dataset dicts.
        setup: the student's.
        reader: the open cache, or None when the teacher is live or absent.
        for_live: whether a live teacher may ask for its image.
        """
        # One buffer of bytes: forked and spawned workers share it instead of copying lists.
        self._images = DatasetFromList(images, copy=False)
        self._setup = setup
        self._augmentation = Augmentation.of_config(setup.settings.views)
        self._students = student_augmentation(setup.cfg, setup.settings.student_views)
        self._for_live = for_live
        self._reader = reader
        self._with_detections = reader is not None and DETECTIONS in needs_of(setup)
        self._pixels = PixelCheck(
            strict=setup.settings.cache.pixels == "strict", steps=setup.settings.views.steps
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return next(iter(self.__getitems__([draw])))

    def __getitems__(self, draws: list[Draw]) -> Iterator[dict[str, Any]]:
        """The items of a whole batch, as PyTorch's loader asks for them, made one by one."""
        if self._reader is None:
            return (self._render(draw)[0] for draw in draws)
        ids = [self._images[draw.position]["image_id"] for draw in draws]
        numbers = [
            self._reader.record_number(image_id, draw.view)
            for image_id, draw in zip(ids, draws, strict=True)
        ]
        return map(self._with_codes, draws, self._reader.read_each(numbers))

    def _render(self, draw: Draw) -> tuple[dict[str, Any], RenderedView]:
        image = self._images[draw.position]
        height, width = image["height"], image["width"]
        view = plan_view(
            self._augmentation,
            image_id=image["image_id"],
            view=draw.view,
            height=height,
            width=width,
        )
        rendered = render(Path(image["file_name"]), view)
        item = {
            **self._images_of(rendered.pixels, image["image_id"], draw.epoch),
            "instances": view_objects(image, rendered.transforms, (view.height, view.width)),
            "height": height,
            "width": width,
            "image_id": image["image_id"],
            "file_name": image["file_name"],
            "view": draw.view,
            "unlabelled": image.get("unlabelled", False),
        }
        return item, rendered

    def _images_of(self, pixels: np.ndarray, image_id: int, epoch: int) -> dict[str, torch.Tensor]:
        """What the student sees of (H, W, 3) pixels, and the teacher where that differs."""
        clean = to_model_image(pixels, self._setup.cfg)
        if self._students is None:
            return {"image": clean}
        height, width = pixels.shape[:2]
        planned = plan_view(
            self._students, image_id=image_id, view=epoch, height=height, width=width
        )
        changed = to_model_image(planned.transforms().apply_image(pixels), self._setup.cfg)
        return {"image": changed, **({TEACHER_IMAGE: clean} if self._for_live else {})}

    def _with_codes(self, draw: Draw, record: dict[str, np.ndarray]) -> dict[str, Any]:
        item, rendered = self._render(draw)
        self._pixels.check(record, rendered, file_name=item["file_name"], view=draw.view)
        # What belongs to no signal is for checks and evaluation, and few methods.
        item["codes"] = {name: _tensor(code) for name, code in record.items() if "." in name}
        if self._with_detections:
            item[DETECTIONS] = _tensor(record[DETECTIONS])
        return item


def build_data(setup: Setup, images: list[dict[str, Any]], reader: CacheReader | None) -> DataParts:
    """Build this rank's loader of images, which are as for `ViewDataset`.

    Raises:
        ValueError: no image is left to train on, or a batch cannot be shared as asked for.
    """
    cfg, ours = setup.cfg, setup.settings
    world_size = comm.get_world_size()
    labelled = [one for one in images if not one.get("unlabelled")]
    images = [*labelled, *(one for one in images if one.get("unlabelled"))]
    if cfg.DATASETS.UNLABELED and len(images) == len(labelled):
        raise ValueError(f"DATASETS.UNLABELED {tuple(cfg.DATASETS.UNLABELED)}: no image is left")
    sampler = ViewBatchSampler(
        is_wide=np.array([x["width"] > x["height"] for x in images], dtype=bool),
        unlabelled=Unlabelled(
            images=len(images) - len(labelled),
            of_batch=unlabelled_of_batch(cfg, world_size) if len(labelled) < len(images) else 0,
            parts=cfg.SOLVER.ACCUMULATE,
        ),
        num_views=ours.views.num,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=max(cfg.SEED, 0),
        rank=comm.get_rank(),
        world_size=world_size,
        group_by_aspect=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        repeat_factors=repeat_factors(cfg, labelled),
        last_views=ours.views.last,
        last_from=cfg.SOLVER.MAX_ITER - ours.views.last_iters,
    )
    is_live = ours.teacher.source == "live"
    shows_both = is_live and student_augmentation(cfg, ours.student_views) is not None
    page_locked = cfg.MODEL.DEVICE.startswith("cuda")
    lead = plan_lead(
        workers=cfg.DATALOADER.NUM_WORKERS,
        images=cfg.SOLVER.IMS_PER_BATCH // world_size,
        item_bytes=largest_item_bytes(ours.views, reader, images=2 if shows_both else 1),
        limit_bytes=ours.cache.prefetch_bytes,
        page_locked=page_locked,
    )
    loader = DataLoader(
        ViewDataset(images, setup, reader, for_live=is_live),
        batch_sampler=PartSampler(sampler, lead.parts),
        num_workers=lead.workers,
        prefetch_factor=lead.factor if lead.workers else None,
        collate_fn=pack_in_worker,
        # Without workers nothing is packed yet: `DeviceLoader` does both in one copy.
        pin_memory=page_locked and lead.workers > 0,
    )
    watched = Watched(
        loader, batch_bytes=lead.part_bytes, imports=cfg.IMPORTS, in_use=2 * lead.parts,
        ranks=comm.get_local_size(), forked=reader is None or reader.location.is_local,
    )  # fmt: skip
    on_device = DeviceLoader(watched, torch.device(cfg.MODEL.DEVICE), lead.parts)
    return DataParts(loader=on_device, sampler=sampler)


def unlabelled_of_batch(cfg: CfgNode, world_size: int) -> int:
    """How many images of a batch of all ranks are without labels, by DISTILL.UNLABELED_SHARE.

    Raises:
        ValueError: that is none, or not every part of a step on every rank keeps a labelled one.
    """
    share, batch = cfg.DISTILL.UNLABELED_SHARE, cfg.SOLVER.IMS_PER_BATCH
    count, most = round(share * batch), batch - world_size * cfg.SOLVER.ACCUMULATE
    if not 1 <= count <= most:
        raise ValueError(
            f"DISTILL.UNLABELED_SHARE {share:g} of SOLVER.IMS_PER_BATCH {batch} is {count} images; "
            f"expected 1 to {max(1, most)}, since each rank ({world_size}) and part "
            f"(SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE}) keeps a labelled image beside them; "
            "change the share, or raise SOLVER.IMS_PER_BATCH"
        )
    return count


def repeat_factors(cfg: CfgNode, images: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """How often an epoch shows each image, as DATALOADER.SAMPLER_TRAIN asks; None: once."""
    loader = cfg.DATALOADER
    if loader.SAMPLER_TRAIN == "TrainingSampler":
        return None
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        images, loader.REPEAT_THRESHOLD, sqrt=loader.REPEAT_SQRT
    )
    return np.asarray(factors, np.float64)


def largest_item_bytes(views: ViewsConfig, reader: CacheReader | None, images: int = 1) -> int:
    """Bytes of the pixels, of so many images, and from a cache the codes of the largest view."""
    if reader is None:
        height, width = Augmentation.of_config(views).largest_size
        return 3 * height * width * images
    manifest = reader.manifest
    return max(
        3 * geometry.height * geometry.width * images
        + sum(one.num_bytes for one in reader.arrays[name])
        for name, geometry in manifest.geometries.items()
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    # An object store's bytes are read-only, which a tensor cannot be.
    return torch.from_numpy(np.require(array, requirements="W"))
