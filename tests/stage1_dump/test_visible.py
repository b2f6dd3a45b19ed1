"""What a cropped view shows of annotated objects: clipped, dropped, led back to the image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import detection_utils
from detectron2.structures import BoxMode

from configs.nodes import ViewsConfig
from dataset.reading import load_annotations
from dataset.views import Augmentation, plan_views
from stage1_dump.visible import visible

CONFIG = ViewsConfig(
    crop=("relative_range", 0.4, 0.4), scales=(), max_size=0, scale_range=(0.5, 3.0),
    fixed_size=(64, 96), flip_vertical=0.5,
)  # fmt: skip


@pytest.fixture
def annotations(tmp_path: Path) -> Any:
    """Twenty images of 60x100 with six objects each, a fifth crowds, areas half of the boxes."""
    generator = np.random.default_rng(1)
    images = [
        {"id": number, "file_name": f"{number}.png", "height": 60, "width": 100}
        for number in range(20)
    ]
    objects = []
    for number in range(120):
        x, y = generator.uniform(0, [90, 50])
        wide, high = generator.uniform(2, [100 - x, 60 - y])
        box = {"bbox": [x, y, wide, high], "area": wide * high / 2}
        is_crowd = int(number % 5 == 0)
        entry = {"id": number + 1, "image_id": number % 20, "category_id": 1, "iscrowd": is_crowd}
        objects.append({**entry, **box})
    path = tmp_path / "annotations.json"
    document = {
        "images": images, "annotations": objects, "categories": [{"id": 1, "name": "one"}],
    }  # fmt: skip
    path.write_text(json.dumps(document))
    return load_annotations(str(path))


def test_objects_are_those_that_detectron2_s_mapper_leaves(annotations: Any) -> None:
    sizes = np.full(20, 60), np.full(20, 100)
    views = plan_views(
        Augmentation.of_config(CONFIG),
        image_ids=np.arange(20), view=0, heights=sizes[0], widths=sizes[1],
    )  # fmt: skip
    shown = visible(annotations, views).objects
    before = annotations.objects
    assert 20 < len(shown.ids) < 110
    assert 0 < shown.crowds.sum() < before.crowds.sum()
    for view in views:
        mine = before.image_ids == view.image_id
        mapped = [
            detection_utils.transform_instance_annotations(
                {"bbox": box.tolist(), "bbox_mode": BoxMode.XYWH_ABS, "category_id": int(number)},
                view.transforms(), (view.height, view.width),
            )
            for box, number in zip(before.boxes_xywh_abs[mine], before.ids[mine], strict=True)
        ]  # fmt: skip
        instances = detection_utils.annotations_to_instances(mapped, (view.height, view.width))
        kept = detection_utils.filter_empty_instances(instances)
        own = shown.image_ids == view.image_id
        assert shown.ids[own].tolist() == kept.gt_classes.tolist()
        back = view.transforms().inverse().apply_box(kept.gt_boxes.tensor.numpy().astype(float))
        boxes = shown.boxes_xywh_abs[own]
        assert np.allclose(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]), back, atol=1e-3)
        assert np.allclose(shown.areas[own], boxes[:, 2:].prod(axis=1) / 2)


def test_a_view_that_cuts_nothing_shows_everything_as_it_was(annotations: Any) -> None:
    sizes = np.full(20, 60), np.full(20, 100)
    views = plan_views(
        Augmentation.of_config(ViewsConfig(scales=(90,), fixed_size=(160, 160))),
        image_ids=np.arange(20), view=0, heights=sizes[0], widths=sizes[1],
    )  # fmt: skip
    shown, before = visible(annotations, views).objects, annotations.objects
    assert shown.ids.tolist() == before.ids.tolist()
    assert np.allclose(shown.boxes_xywh_abs, before.boxes_xywh_abs)
    assert np.allclose(shown.areas, before.areas)
