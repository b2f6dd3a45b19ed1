"""Images for the teacher: read and rendered in worker processes, in the order of the batches.

An image that cannot be read is not an exception here: it travels with its batch, so that the dump
can give up one shard and go on with the others. A step that fails is one: it would at every image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dataset.image_files import image_path
from dataset.pixels import ImageError
from dataset.sets import set_of
from dataset.views import View, plan_view, render
from detectors import to_model_image
from detectors.packing import PackedBatch, pack
from detectors.workers import Watched
from storage.resources import exhausted
from storage.schema import PIXEL_FIELDS, PIXELS_CRC, PIXELS_SAMPLE, SAMPLE_SIDE

from .prepare import Prepared


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A view that cannot be rendered.

    Attributes:
        record: record number in the plan.
        image_id, view: which view it is.
        message: what is wrong with which file.
    """

    record: int
    image_id: int
    view: int
    message: str

    def __str__(self) -> str:
        return f"record {self.record} (image {self.image_id}, view {self.view}): {self.message}"


@dataclass(frozen=True, kw_only=True)
class RenderedRecord:
    """One view as the teacher takes it: (3, H, W) uint8 in `INPUT.FORMAT`.

    `pixels` are the fields of the record that tell these pixels from others. `is_written` is False
    for the blank view of an image that is left out.
    """

    image: Tensor
    pixels: dict[str, NDArray[Any]]
    is_written: bool = True


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """The N views of one teacher forward, in slot order, without those that failed.

    `packed` has each of them as `image`, in one piece of memory. `written` are the positions of the
    W views among them that become records, ascending: all but those of images that are left out.
    `pixels` are the fields that tell the pixels of these from others, (W, ...) each.
    """

    packed: PackedBatch
    written: list[int]
    pixels: dict[str, NDArray[Any]]
    failures: list[Failure]

    def __len__(self) -> int:
        return len(self.packed.items)

    def pin_memory(self) -> ImageBatch:
        """The same batch in page-locked memory; the loader's pinning thread calls this."""
        return replace(self, packed=self.packed.pin_memory())

    def images(self, device: torch.device) -> list[Tensor]:
        """N views (3, h, w) uint8 on a device, by one copy that does not wait."""
        return [item["image"] for item in self.packed.to(device).unpack()]


class RecordImages(Dataset[RenderedRecord | Failure]):
    """Renders the view of a record, by record number.

    An image that is left out gives a blank view, so that batches stay as they were planned: their
    size moves the last bits, and the records beside it shall be those of a dump of all images.
    """

    def __init__(self, prepared: Prepared) -> None:
        """Args: the dump whose plan it is."""
        self._images = prepared.images
        self._excluded = frozenset(prepared.excluded)
        self._image_roots = [one.image_root for one in prepared.sets]
        self._index = prepared.index
        self._cfg = prepared.teacher_cfg
        self._augmentation = prepared.setup.augmentation
        # (M,) row of each record's image in the table, which is sorted by id.
        self._rows = np.searchsorted(self._images.ids, self._index.image_id)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest view's pixels."""
        return 3 * int((self._index.height.astype(np.int64) * self._index.width).max())

    @property
    def imports(self) -> tuple[str, ...]:
        """What a worker process imports first."""
        return tuple(self._cfg.IMPORTS)

    def __getitem__(self, record: int) -> RenderedRecord | Failure:
        row = int(self._rows[record])
        view = plan_view(
            self._augmentation,
            image_id=int(self._index.image_id[record]),
            view=int(self._index.view[record]),
            height=int(self._images.heights[row]),
            width=int(self._images.widths[row]),
        )
        if view.image_id in self._excluded:
            return _blank(view)
        try:
            root = self._image_roots[set_of(view.image_id, len(self._image_roots))]
            path = image_path(root, self._images.file_names[row])
            rendered = render(path, view)
        except (OSError, ImageError) as error:
            if exhausted(error):
                raise  # this machine's fault, and not the image's
            return Failure(
                record=record, image_id=view.image_id, view=view.view, message=str(error)
            )
        image = to_model_image(rendered.pixels, self._cfg)
        pixels: dict[str, NDArray[Any]] = {
            PIXELS_CRC: np.array(rendered.crc32c, dtype=np.uint32),
            PIXELS_SAMPLE: rendered.sample(SAMPLE_SIDE),
        }
        return RenderedRecord(image=image, pixels=pixels)


def make_loader(
    dataset: RecordImages,
    batches: Iterable[list[int]],
    *,
    batch: int,
    num_workers: int,
    device: torch.device,
    forked: bool,
) -> Watched[ImageBatch]:
    """Load batches of records with worker processes.

    Args:
        dataset: renders one record.
        batches: record numbers of each batch; asked again for every pass over the loader.
        batch: records of a batch at most.
        num_workers: processes; 0 renders in this one.
        device: where the images go; for a GPU they come in page-locked memory.
        forked: whether workers may be forked from this process, see `Watched`.

    Returns:
        A loader of `ImageBatch`, in the order of `batches`.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
    )
    return Watched(
        loader,
        batch_bytes=batch * dataset.largest_bytes,
        imports=dataset.imports,
        forked=forked,
    )


def _blank(view: View) -> RenderedRecord:
    pixels = {field.name: np.zeros(field.shape, field.dtype) for field in PIXEL_FIELDS}
    image = torch.zeros((3, view.height, view.width), dtype=torch.uint8)
    return RenderedRecord(image=image, pixels=pixels, is_written=False)


def _collate(items: list[RenderedRecord | Failure]) -> ImageBatch:
    rendered = [item for item in items if isinstance(item, RenderedRecord)]
    written = [position for position, item in enumerate(rendered) if item.is_written]
    return ImageBatch(
        packed=pack(
            ({"image": item.image} for item in rendered), shared=get_worker_info() is not None
        ),
        written=written,
        pixels={
            name: np.stack([item.pixels[name] for item in rendered])[written]
            for name in (rendered[0].pixels if rendered else ())
        },
        failures=[item for item in items if isinstance(item, Failure)],
    )
