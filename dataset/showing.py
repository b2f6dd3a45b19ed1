"""A sheet of views: what an augmentation makes of some images and their objects."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.views import Augmentation, plan_view, render
from dataset.views.objects import view_objects

# Inches of a picture's longer side.
_SIDE = 2.6


def draw_sheet(
    path: str | os.PathLike[str],
    images: Sequence[Mapping[str, Any]],
    augmentation: Augmentation,
    *,
    views: Sequence[int],
    class_names: Sequence[str],
) -> None:
    """Draw a row of views for each image, with the boxes of the objects that they show.

    Args:
        path: the PNG to write; its folder is made.
        images: detectron2's dataset dicts.
        augmentation: that makes the views.
        views: their numbers, a column each.
        class_names: by class number.

    Raises:
        FileNotFoundError, OSError, ValueError: as `dataset.views.render`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (_SIDE * len(views), _SIDE * len(images))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(images), len(views), squeeze=False)
    for row, image in zip(grid, images, strict=True):
        for axes, view in zip(row, views, strict=True):
            _draw_view(axes, image, augmentation, view, class_names)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _draw_view(
    axes: Any,
    image: Mapping[str, Any],
    augmentation: Augmentation,
    number: int,
    class_names: Sequence[str],
) -> None:
    from matplotlib.patches import Rectangle

    size = {"height": image["height"], "width": image["width"]}
    view = plan_view(augmentation, image_id=image["image_id"], view=number, **size)
    rendered = render(image["file_name"], view)
    shown = view_objects(image, rendered.transforms, (view.height, view.width))
    axes.imshow(rendered.pixels)
    plain = ", plain" if number in augmentation.plain else ""
    title = f"{image['image_id']}, view {number}{plain}\n{view.height} x {view.width}"
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()
    # Pixels are drawn around whole numbers, boxes lie between them.
    boxes = (np.asarray(shown.gt_boxes.tensor) - 0.5).tolist()
    for (x1, y1, x2, y2), kind in zip(boxes, shown.gt_classes.tolist(), strict=True):
        box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="tab:orange")
        axes.add_patch(box)
        axes.text(x1, y1, class_names[kind], fontsize=5, color="tab:orange", va="bottom")
