"""The objects that a view shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detectron2.data.transforms import TransformList
    from detectron2.structures import Instances


def view_objects(
    image: Mapping[str, Any], transforms: TransformList, size: tuple[int, int]
) -> Instances:
    """Ground truth of a view, crowds left out, as detectron2's own mapper makes it.

    Args:
        image: detectron2's dataset dict.
        transforms: of the view.
        size: height and width of the view, pixels; boxes are clipped to it.

    Returns:
        `gt_boxes`, XYXY_ABS in pixels of the view, none of them empty, and `gt_classes`.
    """
    from detectron2.data import detection_utils

    annotations = [
        # Boxes and classes alone: masks are no use here, and transforming polygons is slow.
        detection_utils.transform_instance_annotations(
            {key: a[key] for key in ("bbox", "bbox_mode", "category_id")}, transforms, size
        )
        for a in image["annotations"]
        if not a.get("iscrowd", 0)
    ]
    instances = detection_utils.annotations_to_instances(annotations, size)
    return detection_utils.filter_empty_instances(instances)
