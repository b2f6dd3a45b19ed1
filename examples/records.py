"""Records of a teacher cache as a torch `Dataset`: pixels, boxes and the teacher's outputs.

    python -m examples.records CACHE FOLDER

FOLDER is the COCO-format folder that the cache was dumped from: `images/` and `annotations/`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset.views import Augmentation, plan_view, render
from stage2_distill.teacher_batch import split_levels
from storage import CacheReader


class TeacherRecords(Dataset[dict[str, Any]]):
    """Every image of a folder under every view of a cache; sizes differ between items."""

    def __init__(self, cache: str, folder: Path, signals: tuple[str, ...] | None = None) -> None:
        """Args: the cache; the COCO-format folder; names of signals, all if None."""
        self.reader = CacheReader(cache, signals)
        self.augmentation = Augmentation.of_fingerprint(self.reader.manifest.augmentation)
        self.folder = folder / "images"
        content = json.loads((folder / "annotations" / "instances_train.json").read_text())
        self.images = {one["id"]: one for one in content["images"]}
        self.objects: dict[int, list[dict[str, Any]]] = {number: [] for number in self.images}
        for one in content["annotations"]:
            self.objects[one["image_id"]].append(one)
        views = range(self.reader.index.num_views)
        self.keys = [(image, view) for view in views for image in self.images]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> dict[str, Any]:
        image_id, view = self.keys[number]
        image = self.images[image_id]
        size = {"height": image["height"], "width": image["width"]}
        plan = plan_view(self.augmentation, image_id=image_id, view=view, **size)
        rendered = render(self.folder / image["file_name"], plan)
        corners = [(x, y, x + w, y + h) for x, y, w, h in self._boxes(image_id)]
        boxes = torch.tensor(corners, dtype=torch.float32).view(-1, 4).numpy()
        record = self.reader.record_number(image_id, view)
        geometry = self.reader.geometry_of(record)
        found = self.reader.read(record)
        # Pixels that the teacher saw have the checksum that the record keeps.
        assert int(found["pixels_crc32c"]) == rendered.crc32c
        codes = {n: torch.from_numpy(code.copy())[None] for n, code in found.items() if "." in n}
        values = {n: one[0] for n, one in self.reader.codec.decode(codes, geometry).items()}
        return {
            "image": torch.from_numpy(rendered.pixels).permute(2, 0, 1),  # (3, H, W) uint8 RGB
            "boxes": torch.from_numpy(rendered.transforms.apply_box(boxes)),  # XYXY, view's pixels
            "classes": torch.tensor([one["category_id"] for one in self.objects[image_id]]),
            "teacher": values,  # scores as probabilities; features (C, S), all levels side by side
            "pyramid": self._levels(values, geometry.level_sizes),
            "padded": (geometry.height, geometry.width),  # what the teacher's grids are of
        }

    def _boxes(self, image_id: int) -> list[list[float]]:
        return [one["bbox"] for one in self.objects[image_id]]

    def _levels(self, values: dict[str, Tensor], sizes: Any) -> list[Tensor]:
        return split_levels(values["features"][None], sizes) if "features" in values else []


if __name__ == "__main__":
    records = TeacherRecords(sys.argv[1], Path(sys.argv[2]))
    for item in map(records.__getitem__, range(len(records))):
        shapes = {name: tuple(value.shape) for name, value in item["teacher"].items()}
        print(tuple(item["image"].shape), len(item["boxes"]), shapes)
