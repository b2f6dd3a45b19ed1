"""AP50 by Pascal VOC's own rule, by detectron2's evaluator, beside COCO's."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator

from dataset.reading import Annotations
from dataset.voc_layout import VocLayout, layout_of

METRIC = "AP50-VOC"


class VocEvaluator(PascalVOCDetectionEvaluator):
    """detectron2's, for images that are numbered."""

    def __init__(
        self,
        layout: VocLayout,
        class_names: list[str],
        judged: Collection[int],
        image_names: Mapping[int, str],
    ) -> None:
        """Args:

        layout: of the set.
        class_names: in the order of the detector's outputs.
        judged: the classes with an object that is not difficult, by their numbers.
        image_names: id of every image to its name in the layout.
        """
        # It asks for all of this by the name of a dataset, and once.
        name = f"voc-rule-{uuid.uuid4().hex}"
        MetadataCatalog.get(name).set(
            dirname=str(layout.folder),
            split=layout.split,
            year=2007 if layout.has_eleven_points else 2012,
            thing_classes=class_names,
        )
        try:
            super().__init__(name)
        finally:
            MetadataCatalog.remove(name)
        # A template of `str.format`, where braces of the folder's own would be fields.
        folder = str(layout.folder / "Annotations").replace("{", "{{").replace("}", "}}")
        self._anno_file_template = f"{folder}/{{}}.xml"
        self._judged = torch.tensor(sorted(judged))
        self._image_names = image_names

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Note the detections of some images."""
        names = [{"image_id": self._image_names[one["image_id"]]} for one in inputs]
        found = [one["instances"].to("cpu") for one in outputs]
        # A class without objects counts as 0, but its detections would have a recall of 0 / 0.
        kept = [{"instances": one[torch.isin(one.pred_classes, self._judged)]} for one in found]
        super().process(names, kept)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """AP50 in percent, under `voc`; None on ranks other than the main."""
        found = super().evaluate()
        return None if found is None else {"voc": {METRIC: float(found["bbox"]["AP50"])}}


def voc_evaluator(annotations: Annotations) -> VocEvaluator | None:
    """What judges a set that `dataset voc` wrote; None for others, and where images were changed.

    Args:
        annotations: as the one reader has them.
    """
    layout = layout_of(Path(annotations.path))
    if layout is None:
        return None
    table = annotations.images
    files = (PurePosixPath(one).with_suffix("") for one in table.file_names)
    names = {int(key): str(one) for key, one in zip(table.ids, files, strict=True)}
    if set(names.values()) != layout.names:
        return None
    objects = annotations.objects
    shown = set(objects.category_ids[~objects.crowds].tolist())
    judged = [number for key, number in annotations.class_ids.items() if key in shown]
    return VocEvaluator(layout, list(annotations.categories.values()), judged, names)
