"""The kinds of detector that `init` writes configs for: what differs between them."""

from __future__ import annotations

from dataclasses import dataclass

# The losses of GID that have a weight; the last two are of a box head.
LOSSES = ("FEATURE", "RELATION", "RESPONSE_CLS", "RESPONSE_REG", "BOX_HEAD_CLS", "BOX_HEAD_REG")
# Their weights where data are many: the paper's, which has no box head.
PAPER_WEIGHTS = (5e-4, 40.0, 0.1, 1.0)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of detector.

    Attributes:
        name: as people write it.
        base: the file of `configs/` that its configs begin with.
        classes_key: node and key below MODEL of the number of classes.
        sizes_per_level: anchor sizes on each level; 0 where it has no anchors.
        rate_for_16: detectron2's learning rate for 16 images in a step.
        small_weights: of the first of `LOSSES` on a small set that was measured, or of all.
        small_source: a sentence that says where those are from, with the file that states them.
    """

    name: str
    base: str
    classes_key: tuple[str, str]
    sizes_per_level: int
    rate_for_16: float
    small_weights: tuple[float, ...]
    small_source: str


KINDS = {
    "retinanet": Kind(
        name="RetinaNet",
        base="base_retinanet.yaml",
        classes_key=("RETINANET", "NUM_CLASSES"),
        sizes_per_level=3,
        rate_for_16=0.01,
        small_weights=(0.1, 1.0, 8.0, 4.0),
        small_source="From configs/photographs/distill.yaml: tried on 292 photographs of blood "
        "cells at 240 px, with a small RetinaNet trained from scratch.",
    ),
    "fcos": Kind(
        name="FCOS",
        base="base_fcos.yaml",
        classes_key=("FCOS", "NUM_CLASSES"),
        sizes_per_level=0,
        rate_for_16=0.01,
        small_weights=(0.2, 0.25, 4.0, 8.0),
        small_source="From configs/demo_fcos/distill.yaml: searched on synthetic images of 96 px, "
        "with a small FCOS trained from scratch.",
    ),
    "faster_rcnn": Kind(
        name="Faster R-CNN",
        base="base_faster_rcnn.yaml",
        classes_key=("ROI_HEADS", "NUM_CLASSES"),
        sizes_per_level=1,
        rate_for_16=0.02,
        small_weights=(0.0125, 4.0, 16.0, 8.0, 16.0, 16.0),
        small_source="From configs/photographs_faster_rcnn/distill.yaml: searched on 60 held out "
        "of 292 photographs of blood cells at 240 px, with a small Faster R-CNN trained from "
        "scratch.",
    ),
}
