"""The data of a config are refused before anything is computed, in one sentence everywhere."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from configs.loader import load_config
from dataset.__main__ import main as dataset_main
from dataset.reading import load_annotations
from dataset.synthetic import SyntheticConfig, write_synthetic
from detectors import Setup, training_images
from detectors.__main__ import main
from detectors.command import register_data, set_up
from detectors.datasets import require_fit
from detectors.evaluate import box_evaluator, coco_evaluator
from stage1_dump.__main__ import main as dump_main
from stage2_distill.__main__ import main as distill_main
from tests.tiny import DETECTOR

Edit = Callable[[dict[str, Any]], object]
Data = Callable[..., Path]
CLASSES = "MODEL.RETINANET.NUM_CLASSES"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets") / "data"
    write_synthetic(folder, SyntheticConfig(train=6, val=3, size=64), workers=1)
    return folder


@pytest.fixture
def data(clean: Path, tmp_path: Path) -> Data:
    """Write a folder with the clean one's images, its annotations edited; return its config."""

    def write(train: Edit = list, val: Edit = list) -> Path:
        folder = tmp_path / "data"
        (folder / "annotations").mkdir(parents=True)
        (folder / "images").symlink_to(clean / "images")
        for split, edit in (("train", train), ("val", val)):
            name = f"annotations/instances_{split}.json"
            document = json.loads((clean / name).read_text())
            document["categories"] = document["categories"][:3]
            known = {one["id"] for one in document["categories"]}
            document["annotations"] = [
                one for one in document["annotations"] if one["category_id"] in known
            ]
            edit(document)
            (folder / name).write_text(json.dumps(document))
        (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(DETECTOR))
        content: dict[str, Any] = {
            **DETECTOR,
            "DATASET": {"FOLDER": str(folder)},
            "DATASETS": {"TRAIN": ["folder_train"], "TEST": ["folder_val"]},
            "DATALOADER": {"NUM_WORKERS": 0},
            "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
            "VIEWS": {"SCALES": [64]},
            "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 1},  # if nothing is refused
            "TEACHER": {"CONFIG": str(tmp_path / "teacher.yaml"), "WEIGHTS": "teacher.pth"},
            "CACHE": {"LOCATION": str(tmp_path / "cache")},
            "OUTPUT_DIR": str(tmp_path / "output"),
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def null_box(document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"] = None


def nan_box(document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"][2] = float("nan")


def text_ids(document: dict[str, Any]) -> None:
    for image in document["images"]:
        image["id"] = str(image["id"])


def all_crowds(document: dict[str, Any]) -> None:
    for one in document["annotations"]:
        one["iscrowd"] = 1


def no_objects(document: dict[str, Any]) -> None:
    document["annotations"].clear()


def without_areas(document: dict[str, Any]) -> None:
    for one in document["annotations"]:
        for key in ("area", "iscrowd", "segmentation"):
            one.pop(key, None)


def swapped_names(document: dict[str, Any]) -> None:
    first, second, _ = document["categories"]
    first["name"], second["name"] = second["name"], first["name"]


def one_category_less(document: dict[str, Any]) -> None:
    last = document["categories"].pop()["id"]
    document["annotations"] = [x for x in document["annotations"] if x["category_id"] != last]


def missing_image(document: dict[str, Any]) -> None:
    document["images"][-1]["file_name"] = "gone.jpg"


COMMANDS: dict[str, Callable[[str], int]] = {
    "train": lambda config: main(["train", "--config-file", config]),
    "plan": lambda config: dump_main(["plan", "--config-file", config]),
    "dump": lambda config: dump_main(["run", "--config-file", config]),
    "check of a dump": lambda config: dump_main(["check", "--config-file", config]),
    "distill": lambda config: distill_main(["train", "--config-file", config]),
    "fidelity": lambda config: distill_main(["fidelity", "--config-file", config]),
    "show": lambda config: distill_main(["show", "--config-file", config]),
}


@pytest.mark.parametrize("edit", [null_box, nan_box, text_ids, all_crowds])
def test_every_command_refuses_in_the_sentence_of_the_check(
    edit: Edit, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(data(train=edit))
    annotations = tmp_path / "data/annotations/instances_train.json"
    images = str(tmp_path / "data/images")
    assert dataset_main(["check", "--images", images, "--annotations", str(annotations)]) == 1
    sentence = capsys.readouterr().out.splitlines()[0].removeprefix("error: ")
    for name, command in COMMANDS.items():
        assert command(config) == 1, name
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {annotations}: {sentence}"), name
    assert not (tmp_path / "output").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("edit", [null_box, nan_box, all_crowds, no_objects])
def test_a_bad_evaluation_set_is_refused_before_the_training(
    edit: Edit, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(data(val=edit))
    for command in (["train"], ["eval"], ["train", "--eval-only"]):
        assert main([*command, "--config-file", config]) == 1
        assert "data/annotations/instances_val.json" in capsys.readouterr().err.splitlines()[-1]
    assert COMMANDS["distill"](config) == 1
    assert "data/annotations/instances_val.json" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "output").exists()
    # A dump has no use for it.
    assert COMMANDS["plan"](config) == 0


def test_an_evaluation_set_without_objects_is_refused_with_the_way_out(
    data: Data, tmp_path: Path
) -> None:
    config = str(data(val=no_objects))
    said = (
        f"{tmp_path}/data/annotations/instances_val.json (DATASETS.TEST): expected objects to "
        "find, got 3 images without any, of which there is no AP; name a set with objects, or, to "
        "train without evaluation, none: ()"
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        register_data(load_config(config))
    register_data(load_config(config, ["DATASETS.TEST", "()"]))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_image_is_refused_before_the_training(
    split: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(data(**{split: missing_image}))
    for name in ("train", "distill"):
        assert COMMANDS[name](config) == 1
        assert "images are missing, the first is 'gone.jpg'" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_images_that_are_not_asked_for_may_be_missing(data: Data) -> None:
    config = str(data(train=missing_image))
    register_data(load_config(config, ["DATASET.MAX_IMAGES", "4"]))
    register_data(load_config(config), use=("TEST",))
    with pytest.raises(FileNotFoundError, match="1 of 6 images are missing"):
        register_data(load_config(config))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (swapped_names, r"1 is 'disc' there and 'triangle' here, 2 is 'triangle' there and 'disc'"),
        (one_category_less, "3 is 'ring' there and no category here; write the same list"),
        (
            lambda d: d["categories"].append({"id": 9, "name": "x"}),
            "9 is no category there and 'x'",
        ),
    ],
)
def test_sets_of_other_categories_are_refused(
    edit: Edit, said: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(data(val=edit))
    annotations = tmp_path / "data/annotations"
    for command in ("train", "eval"):
        assert main([command, "--config-file", config]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{annotations}/instances_val.json (DATASETS.TEST): its categories are" in error
        assert f"those of {annotations}/instances_train.json (DATASETS.TRAIN): " in error
        assert said in error
    # Evaluation needs no training set.
    (annotations / "instances_train.json").unlink()
    register_data(load_config(config), use=("TEST",))


# The RetinaNet's own keys of the folder's config are put back, or they are refused first.
R_CNN = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", CLASSES, "80"]
R_CNN += ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.05", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
R_CNN += [
    "MODEL.ROI_HEADS.IN_FEATURES",
    "['p3','p4','p5']",
    "MODEL.RPN.IN_FEATURES",
    "['p3','p4','p5']",
]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([CLASSES, "2"], CLASSES),
        ([CLASSES, "80"], CLASSES),
        (R_CNN, "MODEL.ROI_HEADS.NUM_CLASSES"),
    ],
)
def test_another_number_of_classes_is_refused_by_name(
    overrides: list[str], key: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(data())
    for run in (main, distill_main):
        assert run(["train", "--config-file", config, *overrides]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {key} is ") and error.endswith(f"set {key} 3")
        assert "instances_train.json has 3 categories: 1 'disc', 2 'triangle', 3 'ring'" in error
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("edit", [list, without_areas])
def test_evaluation_of_a_dataset_goes_through_the_reader(edit: Edit, data: Data) -> None:
    cfg = load_config(str(data(val=edit)))
    register_data(cfg)
    (image, *_) = coco_evaluator(cfg, "folder_val")._coco_api.imgToAnns.values()
    assert image[0]["id"] == 1 and image[0]["iscrowd"] == 0 and image[0]["area"] > 0


def test_a_category_without_objects_is_a_class_and_is_named(data: Data) -> None:
    def root_class(document: dict[str, Any]) -> None:
        document["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})

    config = str(data(train=root_class, val=root_class))
    cfg = load_config(config)
    warnings = register_data(cfg)
    assert len(warnings) == 2 and "no object, yet are classes: 0 'shapes'" in warnings[0]
    with pytest.raises(ValueError, match=r"4 categories: 0 'shapes' \(without objects\), 1 'disc'"):
        require_fit(cfg, ("TRAIN",))
    require_fit(load_config(config, [CLASSES, "4"]), ("TRAIN",))


def test_what_is_warned_of_is_in_the_log_once(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_extent(document: dict[str, Any]) -> None:
        document["annotations"][0]["bbox"] = [0, 0, 0, 0]

    cfg = load_config(str(data(train=no_extent)))
    arguments = argparse.Namespace(config_file="", eval_only=False)
    set_up(cfg, arguments)
    log = (tmp_path / "output/log.txt").read_text()
    assert log.count("has no area; training drops it") == 1


def test_a_teacher_of_other_classes_is_warned_of_by_the_plan(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = str(data())
    assert COMMANDS["plan"](config) == 0
    assert caplog.text == ""
    teacher = tmp_path / "teacher.yaml"
    content = yaml.safe_load(teacher.read_text())
    content["MODEL"]["RETINANET"]["NUM_CLASSES"] = 5
    teacher.write_text(yaml.safe_dump(content))
    assert COMMANDS["plan"](config) == 0
    assert f"of the teacher, {CLASSES} is 5, but " in caplog.text


@pytest.mark.parametrize("key", ["MODEL.MASK_ON", "MODEL.KEYPOINT_ON"])
def test_masks_and_keypoints_are_not_trained(key: str, data: Data) -> None:
    cfg = load_config(str(data()), [key, "True"])
    register_data(cfg)
    with pytest.raises(ValueError, match=rf"{key} is True, but boxes are all that is trained"):
        require_fit(cfg, ("TRAIN", "TEST"))
    require_fit(cfg, ("TEST",))


def test_evaluation_knows_the_categories_of_detectron2s_own_training_sets(data: Data) -> None:
    cfg = load_config(str(data()), ["DATASETS.TRAIN", "('coco_2017_train',)"])
    with pytest.raises(ValueError, match=r"those of coco_2017_train \(DATASETS\.TRAIN\): 1 is"):
        register_data(cfg, use=("TEST",))


def test_a_model_without_known_classes_is_not_judged(data: Data) -> None:
    cfg = load_config(str(data()), ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"])
    register_data(cfg)
    require_fit(cfg, ("TRAIN", "TEST"))


def test_a_set_without_objects_can_be_trained_on_if_asked_for(data: Data) -> None:
    config = str(data(train=no_objects))
    cfg = load_config(config, ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"])
    register_data(cfg)
    assert len(training_images(Setup(cfg))) == 6
    with pytest.raises(
        ValueError, match=r"no image has an object .*\.FILTER_EMPTY_ANNOTATIONS Fal"
    ):
        training_images(Setup(load_config(config)))


def test_a_dataset_of_another_evaluator_is_left_alone(data: Data) -> None:
    from detectron2.data import DatasetCatalog

    DatasetCatalog.register("test_own", lambda: [{"file_name": "x", "image_id": "any"}])
    MetadataCatalog.get("test_own").evaluator_type = "of_its_own"
    try:
        cfg = load_config(str(data()), ["DATASETS.TRAIN", "('test_own',)"])
        register_data(cfg)
        assert training_images(Setup(cfg)) == [{"file_name": "x", "image_id": "any"}]
    finally:
        DatasetCatalog.remove("test_own")
        MetadataCatalog.remove("test_own")


def average_precision(evaluator: COCOEvaluator, document: dict[str, Any]) -> float:
    """AP of detections that are the document's boxes, the last one apart."""
    classes = {one["id"]: number for number, one in enumerate(document["categories"])}
    evaluator.reset()
    for image in document["images"]:
        own = [x for x in document["annotations"][:-1] if x["image_id"] == image["id"]]
        boxes = torch.tensor([x["bbox"] for x in own], dtype=torch.float32).reshape(-1, 4)
        found = Instances((image["height"], image["width"]))
        found.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
        found.scores = torch.linspace(0.9, 0.5, len(own))
        found.pred_classes = torch.tensor([classes[x["category_id"]] for x in own])
        evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
    return float(evaluator.evaluate()["bbox"]["AP"])


def ids_from_0(document: dict[str, Any]) -> None:
    for number, one in enumerate(document["annotations"]):
        one["id"] = number


@pytest.mark.parametrize("edit", [list, without_areas, ids_from_0])
def test_evaluation_is_detectron2s_whatever_the_tool_left_out(
    edit: Edit, clean: Path, tmp_path: Path
) -> None:
    document = json.loads((clean / "annotations/instances_val.json").read_text())
    path = tmp_path / "val.json"
    path.write_text(json.dumps(document))
    MetadataCatalog.get("test_stock").set(
        json_file=str(path), thing_dataset_id_to_contiguous_id=load_annotations(path).class_ids
    )
    try:
        stock = COCOEvaluator("test_stock", ("bbox",), distributed=False, use_fast_impl=False)
        expected = average_precision(stock, document)
    finally:
        MetadataCatalog.remove("test_stock")
    assert 0 < expected < 100
    edit(document)
    path.write_text(json.dumps(document))
    evaluator = box_evaluator(load_annotations(path), distributed=False)
    assert average_precision(evaluator, document) == expected
