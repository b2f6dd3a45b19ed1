"""The command: reads a data folder, chooses, and writes configs, and a script that takes them."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from pathlib import Path

import torch
from detectron2.config import CfgNode

import configs
from configs.loader import default_config, load_config, teacher_config
from dataset.layouts import PREFIX, Split, find_splits
from dataset.reading import load_annotations
from dataset.registry import locate
from detectors.datasets import check_datasets
from detectors.places import refuse_output_dir

from .arguments import MODEL_ZOO
from .choices import Choices, choose
from .families import KINDS, Kind
from .text import Places, Start, detector_text, distill_text, is_text, script_text

NAMES = ("teacher.yaml", "student.yaml", "distill.yaml", "run.sh")
RESULTS = ("teacher", "student", "cache", "distill")
_IMAGENET = "detectron2://ImageNetPretrained/MSRA/R-{}.pkl"
_SHIPPED = Path(configs.__file__).parent


def write_configs(args: argparse.Namespace) -> int:
    """Write the configs for a folder, and say what to do with them.

    Raises:
        FileNotFoundError: the folder, a split of it or its images are missing.
        ValueError: there are such configs or their results already, no results could be written
            there, the data are refused, or the teacher is none.
    """
    output = Path(args.output)
    results = _results_of(output)
    _refuse_earlier(output, results)
    refuse_output_dir(results.as_posix())
    kind = _kind(args.family)
    cfg = _registered(args.data)
    for line in check_datasets(cfg, use=("TRAIN", "TEST"), images=True):
        print(f"note: {line}", file=sys.stderr)
    files = locate(cfg.DATASETS.TRAIN[0])
    train = load_annotations(files[0])
    val = load_annotations(locate(cfg.DATASETS.TEST[0])[0])
    chosen = choose(
        train,
        len(val.images),
        sizes_per_level=kind.sizes_per_level,
        rate_for_16=kind.rate_for_16,
    )
    places = Places(
        data=args.data if is_text(args.data) else f"./{args.data}",
        train=cfg.DATASETS.TRAIN[0].removeprefix(PREFIX),
        val=cfg.DATASETS.TEST[0].removeprefix(PREFIX),
        results=results.as_posix(),
        configs=args.output,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = _base_of(kind, output)
    teacher = _from_model_zoo(args.teacher, kind, cfg) if args.teacher else _imagenet(base, 101)
    student = _imagenet(base, 50)
    texts = (
        detector_text("teacher", kind, teacher, chosen, places, device),
        detector_text("student", kind, student, chosen, places, device),
        distill_text(kind, chosen, places),
        script_text(places),
    )
    output.mkdir(parents=True, exist_ok=True)
    for name, text in zip(NAMES, texts, strict=True):
        with (output / name).open("x", encoding="utf-8") as file:
            file.write(text)
    check = "python -m dataset check --annotations {} --images {}".format(*map(shlex.quote, files))
    print("\n".join(_summary(chosen, places, check, device)))
    return 0


def _results_of(output: Path) -> Path:
    """Where the commands write, which no other folder of configs may share.

    `run.sh` goes on with what it finds there, so that the last folder's name is not enough.
    """
    folder, here = Path(os.path.abspath(output)), Path.cwd()
    inside = folder.relative_to(here if folder.is_relative_to(here) else folder.anchor)
    return Path("output") / inside


def _refuse_earlier(output: Path, results: Path) -> None:
    found = [name for name in NAMES if (output / name).exists()]
    if found:
        raise ValueError(
            f"--output {output}: expected a folder without configs, but it holds "
            f"{', '.join(found)}; name another one, or delete them"
        )
    found = [name for name in RESULTS if (results / name).exists()]
    if found:
        raise ValueError(
            f"--output {output}: its results belong into {results}, expected without any, but it "
            f"holds {', '.join(found)}, which run.sh would go on from; name another one, or delete "
            "them"
        )


def _kind(family: str) -> Kind:
    if family not in KINDS:
        raise ValueError(f"--family {family}: expected one of {', '.join(KINDS)}")
    return KINDS[family]


def _registered(data: str) -> CfgNode:
    """A config of nothing but the data."""
    cfg = default_config()
    cfg.DATASET.FOLDER = os.path.expanduser(data)
    splits = find_splits(Path(cfg.DATASET.FOLDER))
    train = _split(splits, "train", "train")
    # Roboflow writes valid.
    val = _split([one for one in splits if one is not train], "val", "val", "valid")
    if train is None or val is None:
        names = ", ".join(str(one.annotations) for one in splits)
        raise ValueError(
            f"{data}: expected annotations/instances_train.json and instances_val.json, found "
            f"{names}; `python -m dataset split --annotations FILE --output FOLDER` makes both"
        )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((PREFIX + one.name,) for one in (train, val))
    return cfg


def _split(splits: list[Split], *names: str) -> Split | None:
    """The split of one of these names, or of the first that begins with one, as val2017 does."""
    exact = (one for name in names for one in splits if one.name == name)
    similar = (one for one in splits if one.name.startswith(names))
    return next(exact, next(similar, None))


def _base_of(kind: Kind, output: Path) -> str:
    """What `_BASE_` names in files of the output folder: relative inside of this project."""
    base, folder = _SHIPPED / kind.base, output.absolute()
    is_inside = folder.resolve().is_relative_to(_SHIPPED.resolve().parent)
    return os.path.relpath(base.resolve(), folder.resolve()) if is_inside else str(base)


def _imagenet(base: str, depth: int) -> Start:
    why = f"ResNet-{depth} as ImageNet's classes taught it; fetched at the first start."
    return Start(base=base, weights=_IMAGENET.format(depth), depth=depth, why=why)


def _from_model_zoo(name: str, kind: Kind, data: CfgNode) -> Start:
    """A teacher that goes on from a detector of detectron2's model zoo.

    Raises:
        FileNotFoundError, ValueError: it is not there, has no weights, or is of another family.
    """
    if not name.startswith(MODEL_ZOO):
        raise ValueError(
            f"--teacher {name}: expected {MODEL_ZOO}NAME, a config of detectron2's model zoo; for "
            "another, leave this out and change teacher.yaml"
        )
    cfg = data.clone()
    cfg.TEACHER.CONFIG = name
    own, ours = teacher_config(cfg).MODEL, load_config(str(_SHIPPED / kind.base)).MODEL
    parts = [(one.META_ARCHITECTURE, one.BACKBONE.NAME) for one in (own, ours)]
    if parts[0] != parts[1]:
        raise ValueError(
            f"--teacher {name}: expected {' on '.join(parts[1])}, got {' on '.join(parts[0])}; "
            "name another, or another --family"
        )
    return Start(
        base=name,
        weights=_weights_of(name),
        depth=None,
        why="Trained on COCO; fetched at the first start. Layers that depend on the number of "
        "classes begin anew.",
        other_heads=tuple(one for one in ("MASK", "KEYPOINT") if own[f"{one}_ON"]),
    )


def _weights_of(name: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports the deprecated pkg_resources
        from detectron2.model_zoo.model_zoo import _ModelZooUrls
    config = name.removeprefix(MODEL_ZOO).removesuffix(".yaml")
    suffix = _ModelZooUrls.CONFIG_PATH_TO_URL_SUFFIX.get(config)
    if suffix is None:
        raise ValueError(f"--teacher {name}: detectron2 has no trained weights of it; name another")
    return f"detectron2://{config}/{suffix}"


def _summary(chosen: Choices, places: Places, check: str, device: str) -> list[str]:
    side = " to ".join(dict.fromkeys(str(chosen.scales[i]) for i in (0, -1)))
    num = len(chosen.classes)
    lines = [
        f"{places.configs}: {', '.join(NAMES)}, for {num} categor{'y' if num == 1 else 'ies'}, "
        f"{chosen.num_used:,} training images with objects and {chosen.num_val:,} to evaluate on; "
        f"views of {side} px, {chosen.steps:,} steps of {chosen.batch} images.",
        "They are a beginning: read them, change what you know better, and run",
        f"  sh {shlex.quote(f'{places.configs}/run.sh')}",
        "which is",
        *(f"  {one}" for one in places.commands),
        f"No image was opened. To try whether all can be read: {check}",
    ]
    if device == "cpu":
        lines.append(
            "No GPU was found, and on a CPU these take days: write MODEL.DEVICE cuda where one is, "
            "or try the small models of `make demo`."
        )
    return lines
