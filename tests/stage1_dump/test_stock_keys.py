"""Keys of detectron2's that a dump takes: each is seen to act."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load_config
from stage1_dump import images
from stage1_dump.prepare import prepare
from tests.stage1_dump.conftest import Configure
from tests.stage1_dump.helpers import dump


class Asked(Exception):
    """Ends a dump where its loader would be built."""


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_reach_the_loader(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def loader(dataset: Any, *, num_workers: int, **arguments: Any) -> Any:
        raise Asked(num_workers)

    monkeypatch.setattr(images, "DataLoader", loader)
    with pytest.raises(Asked, match=str(workers)):
        dump(configure(DATALOADER={"NUM_WORKERS": workers}))


def test_the_plan_is_of_the_set(configure: Configure, images_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").symlink_to(images_folder / "images")
    document = json.loads((images_folder / "annotations/instances_train.json").read_text())
    document["images"] = document["images"][:4]
    ids = [one["id"] for one in document["images"]]
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] in ids]
    (folder / "annotations/instances_few.json").write_text(json.dumps(document))
    data = {"DATASET": {"FOLDER": str(folder)}, "DATASETS": {"TRAIN": ["folder_few"]}}
    assert sorted(prepare(load_config(str(configure(**data)))).images.ids) == sorted(ids)
