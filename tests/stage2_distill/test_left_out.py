"""Images left out by DATASET.EXCLUDE or by the cache: not trained on, and never in silence."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load_config
from dataset.reading import load_annotations
from detectors import Setup, training_images
from detectors.command import register_data
from stage1_dump.dump import run as dump
from stage2_distill import fidelity, show
from stage2_distill.cache_check import held_images
from stage2_distill.data import ViewDataset
from storage import CacheReader
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import build, train

Log = pytest.LogCaptureFixture
TWO_STEPS = {"IMS_PER_BATCH": 3, "MAX_ITER": 2}


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> tuple[Path, list[int]]:
    """A copy of the data whose first two images are cut, and their ids."""
    copied = Path(shutil.copytree(folder / "data", tmp_path / "data"))
    table = load_annotations(copied / "annotations/instances_train.json").images.first(2)
    for name in table.file_names:
        (path,) = copied.rglob(name.rpartition("/")[2])
        path.write_bytes(path.read_bytes()[:100])
    return copied, table.ids.tolist()


@pytest.fixture
def excluding(
    configure: Configure, spoilt: tuple[Path, list[int]], tmp_path: Path
) -> Callable[..., Path]:
    """Write a config that leaves the cut images out; `exclude=False`: one that does not."""
    folder, ids = spoilt
    path = tmp_path / "out.txt"
    path.write_text("".join(f"{image_id}  # cut\n" for image_id in ids))

    def write(*, exclude: bool = True, **nodes: Any) -> Path:
        data = {"FOLDER": str(folder), "EXCLUDE": str(path) if exclude else ""}
        cache = {"LOCATION": str(tmp_path / "cache")}
        return configure(DATASET=data, CACHE=cache, SOLVER=TWO_STEPS, **nodes)

    return write


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Ids of the images that a step, a picture or a comparison was made of."""
    found: set[int] = set()
    items = ViewDataset.__getitems__

    def spy(self: ViewDataset, draws: Any) -> Any:
        made = list(items(self, draws))
        found.update(item["image_id"] for item in made)
        return made

    monkeypatch.setattr(ViewDataset, "__getitems__", spy)
    return found


def warnings_of(log: Log) -> list[str]:
    return [one.getMessage() for one in log.records if "leaves out" in one.getMessage()]


@pytest.mark.parametrize("source", ["cache", "live", "none"])
def test_the_images_of_the_config_are_not_trained_on(
    excluding: Callable[..., Path], spoilt: Any, shown: set[int], caplog: Log, source: str
) -> None:
    config = excluding(TEACHER={"SOURCE": source})
    if source == "cache":
        dump(load_config(str(config)))
    train(config, "SOLVER.IMS_PER_BATCH", "10", "DATALOADER.ASPECT_RATIO_GROUPING", "False")
    first, second = spoilt[1]
    assert len(shown) == 10 and not shown & {first, second}
    (warning,) = warnings_of(caplog)
    assert warning.startswith("DATASET.EXCLUDE ")
    assert warning.endswith(f"leaves out 2 of 12 training images: {first}, {second}")


def test_the_images_of_the_cache_are_not_used_either(
    excluding: Callable[..., Path], spoilt: Any, shown: set[int], caplog: Log, tmp_path: Path
) -> None:
    dump(load_config(str(excluding())))
    config = excluding(exclude=False)
    expected = (
        f"the cache {tmp_path / 'cache'} leaves out 2 of 12 training images: "
        f"{spoilt[1][0]}, {spoilt[1][1]}"
    )
    train(config)
    assert warnings_of(caplog) == [expected]
    caplog.clear()
    cfg = load_config(str(config))
    register_data(cfg)
    fidelity.measure(Setup(cfg), [fidelity.INITIAL], num_views=24)
    assert warnings_of(caplog) == [expected]
    caplog.clear()
    cfg.MODEL.WEIGHTS = str(tmp_path / "output/student_final.pth")
    pictures = list(show.draw_views(Setup(cfg), count=12, folder=tmp_path / "pictures"))
    assert len(pictures) == 10
    assert warnings_of(caplog) == [expected]
    assert len(shown) == 10 and not shown & set(spoilt[1])


def test_training_on_nothing_is_refused(configure: Configure, folder: Path, tmp_path: Path) -> None:
    cfg = load_config(str(configure()))
    register_data(cfg)
    images = training_images(Setup(cfg))
    path = tmp_path / "all.txt"
    path.write_text("".join(f"{one['image_id']}\n" for one in images))
    said = r"^DATASET\.EXCLUDE .*all\.txt leaves out all 12 images: none is left to train on$"
    with pytest.raises(ValueError, match=said):
        build(configure(DATASET={"FOLDER": str(folder / "data"), "EXCLUDE": str(path)}))
    reader = CacheReader(folder / "exact")
    object.__setattr__(reader.manifest, "excluded", tuple(one["image_id"] for one in images))
    with pytest.raises(ValueError, match=r"^the cache .*exact leaves out all 12 images"):
        held_images(images, reader)
