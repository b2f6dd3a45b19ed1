"""Keys of detectron2's that a dump takes: each is seen to act."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load_config
from stage1_dump import images
from stage1_dump.__main__ import main
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


@pytest.mark.parametrize("filtered", [True, False])
def test_the_plan_counts_images_without_objects(
    configure: Configure, capsys: pytest.CaptureFixture[str], filtered: bool
) -> None:
    config = configure(DATALOADER={"FILTER_EMPTY_ANNOTATIONS": filtered})
    assert main(["plan", "--config-file", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "10 images x 1 views = 10 records" in printed  # both values can be trained
    said = "are not trained on (DATALOADER.FILTER_EMPTY_ANNOTATIONS)" if filtered else ""
    assert f"without objects: 1 images {said}".rstrip() in printed
    assert ("not trained on" in printed) == filtered
