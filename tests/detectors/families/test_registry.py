"""Which family a config's detector is of."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode

from detectors import config_fingerprint, families, family_of, register_family
from detectors.families import num_classes
from detectors.families.retinanet import RetinaNetFamily
from tests.detectors.families.own_models import DeeperRetinaNet
from tests.tiny import DETECTOR, write_config


class DeeperFamily(RetinaNetFamily):
    """A family of the user's."""

    name = "Deeper"
    architecture = DeeperRetinaNet


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "detector.yaml"


def configured(path: Path, architecture: str, family: str = "") -> CfgNode:
    model = {**DETECTOR["MODEL"], "META_ARCHITECTURE": architecture, "FAMILY": family}
    return write_config(path, {**DETECTOR, "MODEL": model})


def refusal(cfg: CfgNode) -> str:
    with pytest.raises(ValueError) as error:
        family_of(cfg)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("architecture", "family"),
    [("RetinaNet", ""), ("DeeperRetinaNet", ""), ("build_deeper", "RetinaNet")],
)
def test_a_detector_is_of_the_family_of_its_class_or_as_stated(
    path: Path, architecture: str, family: str
) -> None:
    cfg = configured(path, architecture, family)
    assert family_of(cfg).name == "RetinaNet"
    assert num_classes(cfg) == ("MODEL.RETINANET.NUM_CLASSES", 3)


@pytest.mark.parametrize("architecture", ["PanopticFPN", "GeneralizedRCNN", "build_deeper", "Nope"])
def test_an_unknown_detector_is_refused_with_the_known_ones(path: Path, architecture: str) -> None:
    cfg = configured(path, architecture)
    assert refusal(cfg).endswith(
        f"MODEL.META_ARCHITECTURE is {architecture!r}; distillation supports: RetinaNet, FCOS, "
        "and what derives from them"
    )


def test_an_r_cnn_can_be_trained_all_the_same(path: Path) -> None:
    cfg = configured(path, "GeneralizedRCNN")
    assert num_classes(cfg) == ("MODEL.ROI_HEADS.NUM_CLASSES", 80)
    assert num_classes(configured(path, "build_deeper")) is None


@pytest.mark.parametrize("asked", [family_of, num_classes])
def test_a_family_that_there_is_not_is_refused(path: Path, asked: object) -> None:
    cfg = configured(path, "build_deeper", "retinanet")
    assert callable(asked)
    with pytest.raises(ValueError, match=r"MODEL\.FAMILY is 'retinanet'; expected one of: Reti"):
        asked(cfg)


def test_a_family_that_is_not_that_of_the_class_is_refused(path: Path) -> None:
    assert "MODEL.FAMILY is 'RetinaNet', but GeneralizedRCNN does not derive from RetinaNet" in (
        refusal(configured(path, "GeneralizedRCNN", "RetinaNet"))
    )


def test_a_class_whose_own_forward_would_be_passed_by_is_refused_unless_stated(path: Path) -> None:
    message = refusal(configured(path, "OtherwiseTrained"))
    assert "which has its own forward_training()" in message
    assert message.endswith("set MODEL.FAMILY RetinaNet")
    assert family_of(configured(path, "OtherwiseTrained", "RetinaNet")).name == "RetinaNet"
    assert num_classes(configured(path, "OtherwiseTrained")) is not None


def test_the_nearest_registered_class_decides(path: Path) -> None:
    family = DeeperFamily()
    register_family(family)
    assert family_of(configured(path, "DeeperRetinaNet")) is family
    assert family_of(configured(path, "DeeperRetinaNet", "RetinaNet")) is not family
    assert family_of(configured(path, "RetinaNet")) is not family


def test_a_name_is_given_once() -> None:
    register_family(DeeperFamily())
    names = r"both \S+\.DeeperFamily and \S+\.RetinaNetFamily are the family 'Deeper'; rename one"
    other = RetinaNetFamily()
    other.name = "Deeper"
    with pytest.raises(ValueError, match=names):
        register_family(other)


def test_the_fingerprint_names_a_family_that_is_not_the_model_s_own_name(path: Path) -> None:
    assert "FAMILY" not in config_fingerprint(configured(path, "RetinaNet"))
    assert "FAMILY" not in config_fingerprint(configured(path, "RetinaNet", "RetinaNet"))
    by_class = config_fingerprint(configured(path, "DeeperRetinaNet"))
    assert by_class["FAMILY"] == "RetinaNet"
    assert by_class == config_fingerprint(configured(path, "DeeperRetinaNet", "RetinaNet"))
    register_family(DeeperFamily())
    assert config_fingerprint(configured(path, "DeeperRetinaNet"))["FAMILY"] == "Deeper"
