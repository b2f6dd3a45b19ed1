"""Commands of the dataset package: fetch, draw, check, choose from, part and show data sets."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys

from detectors.command import (
    add_config_arguments,
    add_image_arguments,
    require_docstrings,
    whole,
)
from storage.example import add_example
from storage.progress import say
from storage.resources import exhausted, with_remedy

# Commands import what they need themselves, so that none waits for another's libraries.

_SHOWN_PROBLEMS = 50


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 for success, 1 for failure, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    commands = {
        "synthetic": _synthetic,
        "coco": _coco,
        "check": _check,
        "subset": _subset,
        "split": _split,
        "voc": _voc,
        "unlabeled": _unlabeled,
        "show": _show,
    }
    try:
        return commands[options.command](options, parser)
    except (ValueError, OSError, ImportError) as error:
        say(f"{parser.prog}: {with_remedy(error, str(error))}")
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        say(f"{parser.prog}: {with_remedy(error, str(error))}")
    except KeyboardInterrupt:
        say(f"{parser.prog}: interrupted; run the command again to continue")
        return 128 + signal.SIGINT
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dataset", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    synthetic = commands.add_parser("synthetic", help="write a small COCO-format set")
    synthetic.add_argument("--output", required=True, help="folder to write")
    synthetic.add_argument("--train", type=int, default=400, help="training images (default: 400)")
    synthetic.add_argument("--val", type=int, default=100, help="validation images (default: 100)")
    synthetic.add_argument("--size", type=int, default=96, help="longer side, pixels (default: 96)")
    synthetic.add_argument("--seed", type=int, default=0, help="another draws others (default: 0)")
    synthetic.add_argument("--workers", type=whole(1), help="processes; default: one a core")

    coco = commands.add_parser("coco", help="fetch COCO 2017; continues where it broke off")
    coco.add_argument("--output", required=True, help="folder for $DETECTRON2_DATASETS")
    coco.add_argument("--mirror", metavar="BASE_URL", help="another server, same paths below it")
    names = ["train2017", "val2017", "annotations"]
    coco.add_argument("--split", nargs="+", choices=names, default=names, help="default: all")
    coco.add_argument("--remove-archives", action="store_true", help="delete them once unpacked")

    check = commands.add_parser("check", help="compare images with their annotations")
    check.add_argument("--images", required=True, help="folder that the file names lie under")
    check.add_argument("--annotations", required=True, help="COCO annotation file")
    check.add_argument("--workers", type=whole(1), help="processes; default: one a core")
    check.add_argument("--json", action="store_true", help="print every problem, as JSON")

    subset = commands.add_parser("subset", help="write a set of some categories, linking images")
    subset.add_argument("--folder", required=True, help="the set, as DATASET.FOLDER takes it")
    subset.add_argument("--categories", required=True, nargs="+", metavar="NAME")
    subset.add_argument("--output", required=True, help="folder to write")
    subset.add_argument(
        "--split", nargs="+", default=[], metavar="NAME",
        help="splits with labels; default: all, each of which must have some",
    )  # fmt: skip
    subset.add_argument(
        "--keep-empty", action="store_true", help="also images without objects of the categories"
    )

    split = commands.add_parser("split", help="part a set into train and val, linking images")
    split.add_argument("--annotations", required=True, help="COCO annotation file")
    split.add_argument("--images", help="folder of the images; default: found near that file")
    split.add_argument("--output", required=True, help="folder to write")
    split.add_argument(
        "--val", type=float, default=0.2, help="share of validation images (default: 0.2)"
    )
    split.add_argument(
        "--seed", type=int, default=0, help="another parts it differently (default: 0)"
    )

    voc = commands.add_parser("voc", help="write Pascal VOC in COCO's layout, linking images")
    voc.add_argument(
        "--input", required=True, nargs="+", metavar="FOLDER", help="VOCdevkit/VOC2007, and others"
    )
    voc.add_argument("--output", required=True, help="folder to write; may hold other splits")
    voc.add_argument(
        "--splits",
        nargs="+",
        default=[],
        metavar="NAME",
        help="lists in ImageSets/Main; default: train, val, trainval and test where they are",
    )
    voc.add_argument(
        "--classes", nargs="*", metavar="NAME",
        help="default: VOC's 20; without names: those found, sorted",
    )  # fmt: skip

    unlabeled = commands.add_parser(
        "unlabeled", help="write a set without labels, for DATASETS.UNLABELED, linking images"
    )
    unlabeled.add_argument("--images", help="folder of the images")
    unlabeled.add_argument("--annotations", help="COCO file, of which the images alone are taken")
    unlabeled.add_argument("--output", required=True, help="folder to write; may hold other splits")
    unlabeled.add_argument(
        "--split", default="unlabeled", metavar="NAME", help="default: %(default)s"
    )

    show = commands.add_parser("show", help="draw views of some images with their boxes, as PNG")
    show.add_argument("--output", default="views.png", metavar="FILE", help="default: views.png")
    add_image_arguments(show, "--images", default=4, at_most=100)
    show.add_argument("--views", type=whole(1, 100), default=4, help="of each image; default: 4")
    add_config_arguments(show)

    add_example(parser, "coco --output datasets")
    add_example(synthetic, "--output demo/data --train 400 --val 100")
    add_example(coco, "--output datasets --split val2017 annotations")
    val2017 = "datasets/coco/annotations/instances_val2017.json"
    add_example(check, f"--images datasets/coco/val2017 --annotations {val2017}")
    add_example(subset, "--folder datasets/coco --categories person --output datasets/coco_person")
    add_example(split, "--annotations export/result.json --output datasets/mine --val 0.2 --seed 1")
    years = "VOCdevkit/VOC2007 VOCdevkit/VOC2012"
    add_example(voc, f"--input {years} --output datasets/voc --splits trainval test")
    add_example(unlabeled, "--images photos --output datasets/mine")
    config = "configs/distill/r50_2x_from_r101_1x_jitter_1024.yaml"
    add_example(show, f"--output views.png --config-file {config}")
    return parser


def _synthetic(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from dataset.synthetic import SyntheticConfig, write_synthetic

    try:
        config = SyntheticConfig(
            train=options.train, val=options.val, size=options.size, seed=options.seed
        )
    except ValueError as error:
        parser.error(str(error))
    written = write_synthetic(options.output, config, options.workers)
    what = "wrote" if written else "already there:"
    print(f"{what} {config.train} training and {config.val} validation images, {options.output}")
    return 0


def _coco(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from dataset.download import BASE_URL, download_coco
    from dataset.fetch import check_url

    base_url = options.mirror or BASE_URL
    try:
        check_url(base_url)
    except ValueError as error:
        parser.error(f"--mirror: {error}")
    coco = download_coco(
        options.output,
        splits=options.split,
        base_url=base_url,
        remove_archives=options.remove_archives,
    )
    datasets = shlex.quote(str(coco.parent.absolute()))
    print(f"COCO 2017 is in {coco}; set DETECTRON2_DATASETS={datasets}")
    return 0


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from dataset.checking import examine

    report = examine(options.annotations, options.images, options.workers)
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print("\n".join(report.lines(_SHOWN_PROBLEMS)))
    return 1 if report.count("error") else 0


def _subset(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from dataset.categories import write_subset

    written = write_subset(
        options.folder,
        options.output,
        options.categories,
        splits=options.split,
        keep_empty=options.keep_empty,
    )
    for kept in written:
        print(
            f"{kept.split.name}: {len(kept.file_names)} images, {kept.num_objects} objects of "
            f"{', '.join(options.categories)}; images/{kept.split.name} links to {kept.root}"
        )
    _say_use(options.output, len(written[0].categories))
    return 0


def _split(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from dataset.split import write_split

    if not 0 < options.val < 1:
        parser.error(f"--val must lie between 0 and 1, such as 0.2, got {options.val:g}")
    parted = write_split(
        options.annotations,
        options.output,
        val=options.val,
        seed=options.seed,
        images=options.images,
    )
    for part in parted.parts:
        print(f"{part.name}: {len(part.file_names)} images, {part.num_objects} objects")
    print("\n".join([*parted.notes, f"images stay in {parted.root}"]))
    _say_use(options.output, parted.num_classes)
    return 0


def _voc(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from dataset.voc import CLASS_NAMES, write_voc

    classes = CLASS_NAMES if options.classes is None else options.classes or None
    converted = write_voc(options.input, options.output, splits=options.splits, classes=classes)
    for one in converted.splits:
        print(
            f"{one.name}: {one.num_images} images of {', '.join(one.years)}, {one.num_objects} "
            f"objects, {one.num_difficult} of them difficult: not trained on, ignored in AP"
        )
    print("".join(f"{note}\n" for note in converted.notes), end="")
    _say_use(options.output, len(converted.classes))
    return 0


def _say_use(folder: str, num_classes: int) -> None:
    """Print the settings with which a set that was written is used."""
    print(f"set DATASET.FOLDER {shlex.quote(folder)}, and NUM_CLASSES {num_classes}")


def _unlabeled(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from dataset.unlabeled import write_folder, write_without_labels

    output, split = options.output, options.split
    if options.annotations:
        found = write_without_labels(
            options.annotations, output, split=split, images=options.images
        )
    elif options.images:
        found = write_folder(options.images, output, split=split)
    else:
        parser.error("unlabeled: give --images, --annotations or both")
    print("".join(f"left out: {line}\n" for line in found.left_out), end="")
    print(f"{split}: {found.num_images} images, which stay in {found.root}")
    print(
        f"set DATASET.FOLDER {shlex.quote(output)}, and DATASETS.UNLABELED \"('folder_{split}',)\""
    )
    return 0


def _show(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    require_docstrings()
    from detectron2.data import MetadataCatalog

    from configs.stock_keys import DISTILL
    from dataset.showing import draw_sheet
    from detectors import Setup, some_places, training_images
    from detectors.command import read_config, register_data

    setup = Setup(read_config(options, DISTILL))
    for warning in register_data(setup.cfg, use=("TRAIN",)):
        print(f"{parser.prog}: warning: {warning}", file=sys.stderr)
    images = training_images(setup)
    places = some_places(images, count=options.images, image_ids=options.image_ids)
    draw_sheet(
        options.output,
        [images[place] for place in places],
        setup.augmentation,
        views=range(options.views),
        class_names=MetadataCatalog.get(setup.cfg.DATASETS.TRAIN[0]).thing_classes,
    )
    print(f"wrote {options.views} views of {len(places)} images to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
