"""Training on some of a cache's images: all of them must be there, and have the same views."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load_config
from detectors import Setup, training_images
from detectors.command import register_data
from stage1_dump.dump import run as dump
from stage2_distill.cache_check import open_cache
from storage import CacheReader
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import losses_of, train

Document = dict[str, Any]
Annotate = Callable[[Callable[[Document], None]], Path]


def use(path: Path) -> tuple[CacheReader, list[int]]:
    """Open the cache of a config as training does, and the ids that are trained on."""
    cfg = load_config(str(path))
    register_data(cfg)
    setup = Setup(cfg)
    images = training_images(setup)
    return open_cache(setup, images), sorted(image["image_id"] for image in images)


@pytest.fixture
def annotate(folder: Path, tmp_path: Path) -> Annotate:
    """A folder with the same images, and annotations that were changed."""

    def write(change: Callable[[Document], None]) -> Path:
        data = Path(shutil.copytree(folder / "data", tmp_path / "data"))
        path = data / "annotations/instances_train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return data

    return write


def keep(content: Document, ids: list[int]) -> None:
    """Leave out all other images, and their objects."""
    content["images"] = [one for one in content["images"] if one["id"] in ids]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]


def test_some_of_a_cache_teach_the_same_as_a_cache_of_those_alone(
    configure: Configure, annotate: Annotate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes: dict[str, Any] = {"TEACHER": {"BATCH": 1}}  # else the batches differ, and the last bits
    cache = {"LOCATION": str(tmp_path / "eight")}
    dump(load_config(str(configure(DATASET={"MAX_IMAGES": 8}, CACHE=cache, **nodes))))
    eight = sorted(set(CacheReader(tmp_path / "eight").index.image_id.tolist()))
    five = [*eight[:2], *eight[-3:]]
    listed = tmp_path / "images.txt"
    listed.write_text("".join(f"{image_id}\n" for image_id in five))
    some = {"DATASET": {"IMAGE_LIST": str(listed)}, **nodes}
    alone = configure(CACHE={"LOCATION": str(tmp_path / "five")}, **some)
    dump(load_config(str(alone)))
    wanted = losses_of(train(alone))
    read: set[int] = set()
    read_each = CacheReader.read_each

    def spy(self: CacheReader, records: Any) -> Any:
        read.update(self.index.image_id[records].tolist())
        return read_each(self, records)

    monkeypatch.setattr(CacheReader, "read_each", spy)
    assert losses_of(train(configure(CACHE=cache, **some))) == wanted
    assert read and read <= set(five)
    # Without the list, and with annotations of five images: these are another data set.
    data = annotate(lambda content: keep(content, five))
    assert (
        losses_of(train(configure(DATASET={"FOLDER": str(data)}, CACHE=cache, **nodes))) == wanted
    )


def test_the_first_images_of_a_cache_may_be_used(configure: Configure) -> None:
    reader, used = use(configure(DATASET={"MAX_IMAGES": 5}))
    assert used == sorted(set(reader.index.image_id.tolist()))[:5]


def test_boxes_may_change_and_an_image_that_lost_its_own_is_not_used(
    configure: Configure, annotate: Annotate, caplog: pytest.LogCaptureFixture
) -> None:
    def change(content: Document) -> None:
        first = content["images"][0]["id"]
        content["annotations"] = [o for o in content["annotations"] if o["image_id"] != first]
        content["annotations"][0]["bbox"][2] /= 2
        # Without objects, and so not used: the cache need not have it.
        content["images"].append({**content["images"][0], "id": 10**6})

    reader, used = use(configure(DATASET={"FOLDER": str(annotate(change))}))
    assert len(used) == 11 and set(used) < set(reader.index.image_id.tolist())
    assert "is not the file that the cache was dumped with" in caplog.text


def new_images(content: Document) -> None:
    for image in content["images"][:4]:
        content["images"].append({**image, "id": image["id"] + 10**6})
        box = next(one for one in content["annotations"] if one["image_id"] == image["id"])
        other = {"id": box["id"] + 10**6, "image_id": image["id"] + 10**6}
        content["annotations"].append({**box, **other})


def another_size(content: Document) -> None:
    content["images"][2]["height"] *= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (new_images, r"4 images are new: (\d{7} \(\S+/train_\d+\.png\), ){3}and 1 more \("),
        (
            another_size,
            r"1 images have another size: \d+ \(\S+/train_\d+\.png\), whose view 0 was "
            r"\d+ x \d+ pixels and would now be \d+ x \d+ \(",
        ),
    ],
)
def test_an_image_that_the_cache_lacks_as_it_is_now_is_named_with_the_way_out(
    configure: Configure, annotate: Annotate, change: Callable[[Document], None], said: str
) -> None:
    config = configure(DATASET={"FOLDER": str(annotate(change))})
    with pytest.raises(ValueError, match=said) as refused:
        use(config)
    assert re.search(r"another CACHE\.LOCATION, or .* DATASET\.IMAGE_LIST\)$", str(refused.value))
    assert "\n" not in str(refused.value)


def test_a_subset_without_objects_cannot_be_trained_on(
    configure: Configure, annotate: Annotate
) -> None:
    def change(content: Document) -> None:
        first = min(image["id"] for image in content["images"])
        content["annotations"] = [o for o in content["annotations"] if o["image_id"] != first]

    with pytest.raises(ValueError, match=r"no image to train on is among those of DATASET"):
        use(configure(DATASET={"FOLDER": str(annotate(change)), "MAX_IMAGES": 1}))
