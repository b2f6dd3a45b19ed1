"""A sheet of views: what an augmentation makes of some images and their objects."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from dataset.drawing import GREEN, BoxGroup, Panel, draw_panels
from dataset.views import Augmentation, plan_view, render
from dataset.views.objects import view_objects


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
    draw_panels(
        path,
        [_panel(image, augmentation, view, class_names) for image in images for view in views],
        columns=len(views),
    )


def _panel(
    image: Mapping[str, Any],
    augmentation: Augmentation,
    number: int,
    class_names: Sequence[str],
) -> Panel:
    size = {"height": image["height"], "width": image["width"]}
    view = plan_view(augmentation, image_id=image["image_id"], view=number, **size)
    rendered = render(image["file_name"], view)
    shown = view_objects(image, rendered.transforms, (view.height, view.width))
    plain = ", plain" if number in augmentation.plain else ""
    return Panel(
        title=f"{image['image_id']}, view {number}{plain}\n{view.height} x {view.width}",
        pixels=rendered.pixels,
        groups=[
            BoxGroup(
                kind="ground truth",
                boxes=shown.gt_boxes.tensor,
                labels=[class_names[one] for one in shown.gt_classes.tolist()],
                colour=GREEN,
            )
        ],
    )
