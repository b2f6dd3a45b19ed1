"""The digest of a teacher's weights: of the model and of its file, for ever the same."""

from dataclasses import make_dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from detectron2.config import CfgNode
from torch import nn

from configs.loader import default_config
from configs.nodes import NODES, register_node
from detectors import config_fingerprint, export_model
from detectors.fingerprint import file_sha256, tensors_sha256

# Every cache was written with such digests: a change would refuse them all.
GOLDEN = "9072bbd5b9a17f1f799e60cdd8f154ac80df0cf7770b51b4073402ababdb34f9"


def test_model_and_file_have_the_digest_that_caches_were_written_with(tmp_path: Path) -> None:
    model = nn.BatchNorm1d(3)
    model.weight.data = torch.arange(3.0)
    export_model(model, tmp_path / "a.pth")
    assert tensors_sha256(model.state_dict()) == GOLDEN
    assert file_sha256(str(tmp_path / "a.pth")) == GOLDEN


def test_the_digest_tells_names_types_shapes_and_values_apart() -> None:
    states = [
        {"a": torch.zeros(2)},
        {"b": torch.zeros(2)},
        {"a": torch.zeros(2, dtype=torch.int32)},
        {"a": torch.zeros(2, 1)},
        {"a": torch.ones(2)},
    ]
    assert len({tensors_sha256(state) for state in states}) == len(states)


def test_what_a_user_s_node_changes_is_part_of_the_config_and_its_defaults_are_not() -> None:
    before = config_fingerprint(retinanet())
    columns = [("width", int, 1), ("names", tuple, ())]
    with patch.dict(NODES):
        register_node(make_dataclass("Mine", columns, namespace={"node": "MINE"}))
        cfg = retinanet()
        assert config_fingerprint(cfg) == before
        cfg.MINE.NAMES = ("a",)
        assert config_fingerprint(cfg) == {**before, "MINE": {"NAMES": ["a"]}}


def retinanet() -> CfgNode:
    cfg = default_config()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    return cfg
