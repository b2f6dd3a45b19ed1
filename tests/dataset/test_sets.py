"""Several data sets as one: whose image is which, and what is said of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from configs.nodes import DatasetConfig
from dataset.annotations import dataset_fingerprint
from dataset.sets import find_sets, joined, set_of, sets_fingerprint, stated_sets, without_objects
from dataset.subset import chosen_images, excluded_ids

STEP = 2**48
NAMES = ("test_sets_a", "test_sets_b")
Writer = Callable[[Any], Path]


@pytest.fixture
def registered(write_json: Writer, document: dict[str, Any], tmp_path: Path) -> Iterator[Path]:
    """Both names are the same file, so that all ids of one are ids of the other."""
    path = write_json(document)
    for name in NAMES:
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(
            json_file=str(path), image_root=str(tmp_path), evaluator_type="coco"
        )
    yield path
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.usefixtures("registered")
def test_no_two_images_share_an_id_and_each_is_known_to_be_of_its_set() -> None:
    alone, both = find_sets(NAMES[:1]), find_sets(NAMES)
    own = alone[0].images.ids.tolist()
    ids = joined(both).ids.tolist()
    assert ids == own + [one + STEP for one in own]
    assert [set_of(one, 2) for one in ids] == [0] * len(own) + [1] * len(own)
    assert joined(both).file_names == alone[0].images.file_names * 2
    assert without_objects(both) == 2 * without_objects(alone)


@pytest.mark.usefixtures("registered")
def test_a_fingerprint_of_several_names_each() -> None:
    alone, both = find_sets(NAMES[:1]), find_sets(NAMES)
    of_one = sets_fingerprint(alone)
    assert of_one == dataset_fingerprint(alone[0].images) == stated_sets(of_one)[0]
    first, second = stated_sets(sets_fingerprint(both))
    assert first == {"name": NAMES[0], **of_one}
    assert (second["name"], second["images"]) == (NAMES[1], of_one["images"])


@pytest.mark.usefixtures("registered")
def test_lists_hold_ids_of_any_set_and_a_number_of_images_is_of_each(tmp_path: Path) -> None:
    sets = find_sets(NAMES)
    path = tmp_path / "ids.txt"
    path.write_text(f"3\n{STEP + 7}\n{STEP + 9}\n")
    listed, limited = (
        joined(chosen_images(sets, config)).ids.tolist()
        for config in (
            DatasetConfig(image_list=str(path)),
            DatasetConfig(image_list=str(path), max_images=1),
        )
    )
    assert listed == [3, STEP + 7, STEP + 9] and limited == [3, STEP + 7]
    assert excluded_ids(sets, DatasetConfig(exclude=str(path))).tolist() == listed
    path.write_text(f"3\n{2 * STEP}\n")  # of a cache of a third set
    assert joined(chosen_images(sets, DatasetConfig(image_list=str(path)))).ids.tolist() == [3]
    path.write_text(f"{STEP + 1}\n")
    with pytest.raises(ValueError, match=r"1 images that are not in \S+ or \S+, the first has"):
        chosen_images(sets, DatasetConfig(image_list=str(path)))


@pytest.mark.parametrize("own", [-1, STEP])
def test_an_id_that_leaves_no_room_is_refused_beside_other_sets_alone(
    registered: Path, document: dict[str, Any], write_json: Writer, own: int
) -> None:
    document["images"][0]["id"] = own
    document["annotations"] = []
    assert write_json(document) == registered
    assert own in find_sets(NAMES[:1])[0].images.ids
    with pytest.raises(ValueError, match=rf"image id {own}: expected 0 to 2\^48 - 1"):
        find_sets(NAMES)
