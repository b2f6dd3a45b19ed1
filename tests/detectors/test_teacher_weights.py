"""A teacher's weights: files and URLs as detectron2 knows them, in full or not at all."""

import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from detectors import load_model
from tests.tiny import DETECTOR, random_detector, write_config

ZOO_NAME = "COCO-Detection/some_teacher/123/model_final.pkl"


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> CfgNode:
    return write_config(tmp_path_factory.mktemp("config") / "teacher.yaml", DETECTOR)


@pytest.fixture(scope="module")
def weights(cfg: CfgNode) -> dict[str, torch.Tensor]:
    return dict(random_detector(cfg, seed=5).state_dict())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where detectron2 keeps what it has fetched."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fetched"))
    return tmp_path / "fetched"


def write_zoo_file(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights as the model zoo does, with what its older files hold besides."""
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights.items()}
    arrays["anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))


def load(cfg: CfgNode, where: str | Path) -> dict[str, torch.Tensor]:
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = str(where)
    return dict(load_model(cfg).state_dict())


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_zoo_file_loads_as_stock_detectron2_loads_it(
    cfg: CfgNode, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    write_zoo_file(tmp_path / "zoo.pkl", weights)
    stock = build_model(cfg)
    DetectionCheckpointer(stock).load(str(tmp_path / "zoo.pkl"))
    loaded = load(cfg, tmp_path / "zoo.pkl")
    assert equal(loaded, dict(stock.state_dict()))
    assert equal(loaded, weights)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pth_file_loads_with_and_without_the_rest_of_a_checkpoint(
    cfg: CfgNode, weights: dict[str, torch.Tensor], tmp_path: Path, wrapped: bool
) -> None:
    content = {"model": weights, "iteration": 9, "optimizer": {"state": {}}} if wrapped else weights
    torch.save(content, tmp_path / "model.pth")
    assert equal(load(cfg, tmp_path / "model.pth"), weights)


def test_a_catalog_name_is_found_in_detectron2_s_own_cache(
    cfg: CfgNode, weights: dict[str, torch.Tensor], cache: Path
) -> None:
    write_zoo_file(cache / "detectron2" / ZOO_NAME, weights)
    assert equal(load(cfg, f"detectron2://{ZOO_NAME}"), weights)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serves the folder `served`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path / "served"))

        def log_message(self, *_: Any) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_url_is_fetched_once(
    cfg: CfgNode,
    weights: dict[str, torch.Tensor],
    cache: Path,
    server: http.server.ThreadingHTTPServer,
    tmp_path: Path,
) -> None:
    path = tmp_path / "served/teachers/some.pkl"
    write_zoo_file(path, weights)
    url = f"http://127.0.0.1:{server.server_port}/teachers/some.pkl"
    assert equal(load(cfg, url), weights)
    path.unlink()
    assert equal(load(cfg, url), weights)
    assert [found.name for found in cache.rglob("*.pkl")] == ["some.pkl"]


def test_a_url_that_cannot_be_fetched_is_named(
    cfg: CfgNode, cache: Path, server: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    (tmp_path / "served").mkdir()
    url = f"http://127.0.0.1:{server.server_port}/none.pkl"
    with pytest.raises(OSError, match=rf"{url}: the weights could not be fetched \(.*404"):
        load(cfg, url)


def test_a_backbone_alone_is_no_teacher(
    cfg: CfgNode, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """ImageNet weights are for a student to start from; stock detectron2 would only warn."""
    part = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    write_zoo_file(tmp_path / "backbone.pkl", part)
    with pytest.raises(ValueError, match=r"backbone\.pkl: weights do not fit the model: ") as error:
        load(cfg, tmp_path / "backbone.pkl")
    missing = [name for name in weights if name.startswith("head.")]
    assert all(f"{name} is missing" in str(error.value) for name in missing)


def test_caffe2_names_are_matched_and_what_they_lack_is_named(
    cfg: CfgNode, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    stem = weights["backbone.bottom_up.stem.conv1.weight"]
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": stem.numpy()}}))
    with pytest.raises(ValueError, match=r"\.weight is missing; .* and \d+ more") as error:
        load(cfg, tmp_path / "R-50.pkl")
    assert "stem.conv1.weight" not in str(error.value)


def test_weights_of_another_number_of_classes_are_refused_by_both_shapes(
    cfg: CfgNode, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    wider = weights | {"head.cls_score.weight": torch.zeros(12, 8, 3, 3)}
    torch.save({"model": wider}, tmp_path / "wider.pth")
    with pytest.raises(ValueError, match=r"cls_score\.weight has shape \(12, 8, 3, 3\), not \(9, "):
        load(cfg, tmp_path / "wider.pth")


def test_a_file_that_holds_no_dict_is_refused(cfg: CfgNode, tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth: expected a dict of weights, found list"):
        load(cfg, tmp_path / "list.pth")
