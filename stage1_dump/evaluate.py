"""The teacher's COCO AP, computed from the final boxes that a cache holds; no teacher is loaded.

A view is as good as the teacher at that view's scale, so the AP of a cache tells whether the right
teacher was dumped, and how well. A view that is cropped is compared with what it shows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray

from dataset.annotations import dataset_fingerprint
from dataset.reading import Annotations, load_annotations
from dataset.sets import among_several, stated_sets
from dataset.tables import ImageTable
from dataset.views import Augmentation, View, ViewArrays, plan_views
from detectors.classes import ClassMap
from detectors.detections import unpack_detections
from detectors.evaluate import box_evaluator, known_numbers
from detectors.identity import other_dataset
from storage import CacheReader
from storage.progress import Progress

from .visible import visible

logger = logging.getLogger(__name__)

# Records read at once.
_READ = 64


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """AP of the views of a cache; `str` gives a table, `to_json` the numbers.

    Attributes:
        cache: location.
        images: images evaluated in each view.
        excluded: images of the plan that the cache leaves out, and that are not evaluated.
        annotated_images: images of the annotation file.
        views: view to metrics in percent, AP, AP50 and so on, and AP of every class.
        incomplete: views that are not evaluated, since shards of them are missing.
        cropped: views that are compared with the objects, and parts of them, that they show.
        empty: cropped views that show no object of any image, so that there is no AP.
    """

    cache: str
    images: int
    excluded: int
    annotated_images: int
    views: dict[int, dict[str, float]]
    incomplete: tuple[int, ...]
    cropped: tuple[int, ...]
    empty: tuple[int, ...]

    def to_json(self) -> str:
        """The evaluation as one JSON object."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        left_out = f", {self.excluded} are left out (DATASET.EXCLUDE)" if self.excluded else ""
        yield (
            f"{self.cache}: {self.images:,} of {self.annotated_images:,} annotated images{left_out}"
        )
        for view, metrics in self.views.items():
            shown = ("AP", "AP50", "AP75", "APs", "APm", "APl")
            numbers = [f"{name} {metrics[name]:.2f}" for name in shown if name in metrics]
            of_what = "  (of what the view shows)" if view in self.cropped else ""
            yield f"view {view}: {'  '.join(numbers)}{of_what}"
        yield from (f"view {view}: shows no object, not evaluated" for view in self.empty)
        yield from (f"view {view}: incomplete, not evaluated" for view in self.incomplete)


def evaluate_cache(
    cache: str, annotations: str, *, view: int | None = None, classes: Sequence[str] = ()
) -> Evaluation:
    """Evaluate whole views of a cache with detectron2's COCO evaluation.

    Args:
        cache: folder or URL.
        annotations: COCO file whose images include the cache's, or those of one of its sets.
        view: which one; None for every view that is complete.
        classes: names of the teacher's classes, in the order of its outputs, where the annotations
            have some of them or another order.

    Raises:
        FileNotFoundError: there is no cache, or no annotation file.
        CacheError: the cache is damaged.
        ValueError: the view is not there or not complete, or the annotations are not those of
            the cache's images and classes, or have no object there.
    """
    reader = CacheReader(cache, ())
    incomplete = _incomplete_views(reader)
    chosen = _choose(reader, view, incomplete)
    truth = load_annotations(annotations)
    for warning in truth.warnings():
        logger.warning("%s", warning)
    class_map = _class_map(reader, truth, classes)
    augmentation = Augmentation.of_fingerprint(reader.manifest.augmentation)
    truth, planned = _in_cache(reader, truth, augmentation)
    images = planned.without(reader.manifest.excluded)
    if not len(images):
        raise ValueError(f"{cache} leaves out all of its images (DATASET.EXCLUDE): none is left")
    if not _has_objects(truth, images):
        raise ValueError(
            f"{truth.path}: expected objects to find, got none in the {len(images)} images of "
            f"{cache}, of which there is no AP; give annotations with objects"
        )
    found: dict[int, dict[str, float]] = {}
    empty = []
    cropped = tuple(one for one in chosen if augmentation.cuts(one))
    of_whole_images = box_evaluator(truth, distributed=False)
    for number in chosen:
        evaluator = of_whole_images
        if number in cropped:
            shown = visible(truth, _views(images, images.ids, number, augmentation))
            if not _has_objects(shown, images):
                empty.append(number)
                continue
            evaluator = box_evaluator(shown, distributed=False)
        kept = np.isin(reader.index.image_id, images.ids)
        records = np.flatnonzero(kept & (reader.index.view == number)).tolist()
        evaluator.reset()
        with Progress(f"view {number}", total=len(records), unit="images") as progress:
            for start in range(0, len(records), _READ):
                part = records[start : start + _READ]
                _process(evaluator, reader, part, images, augmentation, class_map)
                progress.update(len(part))
        with redirect_stdout(StringIO()), _matching_shown(f"AP of view {number}"):
            results = evaluator.evaluate(img_ids=images.ids.tolist())
        found[number] = known_numbers(results["bbox"])
    return Evaluation(
        cache=cache,
        images=len(images),
        excluded=len(planned) - len(images),
        annotated_images=len(truth.images),
        views=found,
        incomplete=() if view is not None else incomplete,
        cropped=cropped,
        empty=tuple(empty),
    )


def _has_objects(truth: Annotations, images: ImageTable) -> bool:
    """Whether images have something to find; a crowd is nothing that must be found."""
    held = np.isin(truth.objects.image_ids, images.ids)
    return not truth.objects.crowds[held].all()


def image_detections(
    rows: NDArray[np.float32], view: View, classes: ClassMap | None = None
) -> Instances:
    """Bring the final boxes of a view back to its image, as stock inference does.

    Args:
        rows: (D, 6) x1 y1 x2 y2 score class, XYXY_ABS in pixels of the view; unused rows score -1.
        view: that view.
        classes: the only ones that are wanted, if not all.

    Returns:
        `pred_boxes` in pixels of the image, XYXY_ABS, with `scores` and `pred_classes`.
    """
    of_teacher = torch.tensor(rows)
    wanted = classes.detections(of_teacher) if classes else of_teacher
    found = unpack_detections(wanted, view.sizes[0])
    of_view = found.pred_boxes.tensor.numpy()
    found.pred_boxes = Boxes(torch.tensor(view.transforms().inverse().apply_box(of_view)))
    # Boxes are clipped to the image, and those of which nothing is left dropped.
    return detector_postprocess(found, *view.sizes[0])


def _process(
    evaluator: COCOEvaluator,
    reader: CacheReader,
    records: Sequence[int],
    images: ImageTable,
    augmentation: Augmentation,
    classes: ClassMap | None,
) -> None:
    """Hand some records of one view to the evaluator."""
    number = int(reader.index.view[records[0]])
    views = _views(images, reader.index.image_id[records], number, augmentation)
    for view, fields in zip(views, reader.read_many(records), strict=True):
        found = image_detections(fields["detections"], view, classes)
        evaluator.process([{"image_id": view.image_id}], [{"instances": found}])


def _views(
    images: ImageTable, ids: NDArray[np.int64], number: int, augmentation: Augmentation
) -> ViewArrays:
    """One view of some of the images."""
    rows = np.searchsorted(images.ids, ids)
    return plan_views(
        augmentation,
        image_ids=ids,
        view=number,
        heights=images.heights[rows],
        widths=images.widths[rows],
    )


def _incomplete_views(reader: CacheReader) -> tuple[int, ...]:
    table = reader.table
    views = {int(reader.index.view[table.records_of(shard)[0]]) for shard in reader.missing()}
    return tuple(sorted(views))


def _choose(reader: CacheReader, view: int | None, incomplete: tuple[int, ...]) -> list[int]:
    views = reader.index.num_views
    if view is not None and not 0 <= view < views:
        raise ValueError(f"{reader.location} holds views 0 to {views - 1}, not {view}")
    chosen = [number for number in range(views) if number not in incomplete]
    if view is not None:
        chosen = [view] if view in chosen else []
    if not chosen:
        what = f"view {view}" if view is not None else "every view"
        raise ValueError(
            f"{reader.location}: {what} lacks shards, and only whole views can be evaluated; "
            "finish the dump with: python -m stage1_dump run --config-file ..."
        )
    return chosen


def _in_cache(
    reader: CacheReader, truth: Annotations, augmentation: Augmentation
) -> tuple[Annotations, ImageTable]:
    """Annotations with the ids that a cache gives their images, and those of these that it holds.

    Raises:
        ValueError: they are not those that the cache, or one of its sets, was planned from.
    """
    stored = stated_sets(reader.manifest.dataset)
    for number, one in enumerate(stored):
        found = among_several(truth, number) if len(stored) > 1 else truth
        held = found.images.rows(np.flatnonzero(np.isin(found.images.ids, reader.index.image_id)))
        if dataset_fingerprint(held)["sha256"] == one["sha256"]:
            return found, held
    if len(stored) > 1:
        raise ValueError(
            f"{truth.path} does not describe the images of a set of {reader.location}, which are "
            + ", ".join(one["name"] for one in stored)
        )
    changes = other_dataset(reader.index, held, augmentation)
    raise ValueError(
        f"{truth.path} does not describe the images of {reader.location}: {'; '.join(changes)}"
    )


def _class_map(
    reader: CacheReader, annotations: Annotations, classes: Sequence[str]
) -> ClassMap | None:
    """The annotated classes among the teacher's; None where they are the same.

    Raises:
        ValueError: there are not as many of both, and no names; or the names do not fit.
    """
    categories, num_classes = annotations.categories, reader.manifest.detections["classes"]
    if classes:
        return ClassMap.of_names(
            tuple(categories.values()),
            classes,
            key="--classes",
            data=annotations.path,
            num_classes=num_classes,
        )
    if num_classes != len(categories):
        raise ValueError(
            f"{annotations.path} has {len(categories)} categories, but the teacher of "
            f"{reader.location} has {num_classes} classes; if they are some of those, name all of "
            "the teacher's with --classes"
        )
    return None


@contextmanager
def _matching_shown(label: str) -> Iterator[None]:
    """Show how far pycocotools is: on a large set it matches boxes for many minutes, in silence.

    Neither it nor detectron2 has a place to listen, but its class calls a method for each image,
    class and range of areas, and detectron2 looks that class up by name.
    """
    stock = coco_evaluation.COCOeval

    class Reporting(stock):  # type: ignore[misc, valid-type]
        def evaluate(self) -> None:
            params = self.params
            total = len(params.imgIds) * len(params.catIds) * len(params.areaRng)
            with Progress(label, total=total, unit="lists of boxes") as self.progress:
                super().evaluate()

        def evaluateImg(self, *args: Any) -> Any:
            self.progress.update()
            return super().evaluateImg(*args)

    coco_evaluation.COCOeval = Reporting
    try:
        yield
    finally:
        coco_evaluation.COCOeval = stock
