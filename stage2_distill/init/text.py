"""The text of the configs, what was chosen with the reason for each value, and of the script."""

from __future__ import annotations

import json
import re
import shlex
from ast import literal_eval
from dataclasses import dataclass
from os.path import isabs
from textwrap import indent, wrap

import yaml

from configs.wording import listed

from .choices import STOCK_SIZES, Choices
from .families import LOSSES, PAPER_WEIGHTS, Kind

_WIDTH = 99
_SHOWN_CLASSES = 8


@dataclass(frozen=True, kw_only=True)
class Start:
    """What one detector's training starts from.

    Attributes:
        base: what its `_BASE_` names.
        weights: `MODEL.WEIGHTS`.
        depth: of its ResNet; None leaves what the base says.
        why: a sentence on the two.
        other_heads: heads beside the boxes that the base switches on, such as MASK.
    """

    base: str
    weights: str
    depth: int | None
    why: str
    other_heads: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Places:
    """What the configs name.

    Attributes:
        data: `DATASET.FOLDER`.
        train, val: its splits.
        results: folder of all results, relative to the working directory.
        configs: folder of the configs themselves.
    """

    data: str
    train: str
    val: str
    results: str
    configs: str

    def command(self, name: str, config: str) -> str:
        """A command line that takes one of the configs."""
        return f"python -m {name} --config-file {shlex.quote(f'{self.configs}/{config}.yaml')}"

    @property
    def commands(self) -> tuple[str, ...]:
        """From data to a distilled student; each goes on where it was stopped."""
        return (
            self.command("detectors train", "teacher") + " --resume",
            self.command("stage1_dump run", "distill"),
            self.command("stage2_distill train", "distill") + " --resume",
        )


def script_text(places: Places) -> str:
    """All commands in one file for a shell."""
    header = comment(
        "The teacher, its cache, and the student: stopped, the same command again goes on. With "
        "several GPUs, see docs/COCO.md for how each is started.",
        0,
    )
    return "".join(f"{line}\n" for line in (header.rstrip(), "set -e", *places.commands))


def detector_text(
    role: str, kind: Kind, start: Start, chosen: Choices, places: Places, device: str
) -> str:
    """The config of the teacher or the student, which plain training takes too."""
    other = "student" if role == "teacher" else "teacher"
    header = comment(f"The {role}: {kind.name}, for the data in {places.data}.", 0)
    header += comment(
        "Written from the numbers of images and boxes as a beginning: read it, and change what you "
        f"know better. Classes, anchors and what concerns the data must stay as in {other}.yaml.",
        0,
    )
    if role == "student":
        header += comment("Trained without a teacher, it is what distillation has to beat:", 0)
        header += f"#   {places.command('detectors train', role)}\n"
    return "".join(
        (
            header,
            f"_BASE_: {quoted(start.base)}\n",
            _model(kind, start, chosen, device),
            _data(chosen, places),
            _schedule(kind, chosen),
            f"OUTPUT_DIR: {quoted(f'{places.results}/{role}')}\nVERSION: 2\n",
        )
    )


def _model(kind: Kind, start: Start, chosen: Choices, device: str) -> str:
    node, key = kind.classes_key
    where = "A GPU was found." if device == "cuda" else "No GPU was found; write cuda where one is."
    names = listed(chosen.classes, shown=_SHOWN_CLASSES)
    depth = f"  RESNETS:\n    DEPTH: {start.depth}\n" if start.depth else ""
    heads = "".join(f"  {name}_ON: False\n" for name in start.other_heads)
    return f"""\
MODEL:
{comment(where)}  DEVICE: {device}
{comment(start.why)}  WEIGHTS: {quoted(start.weights)}
{depth}{heads}  {node}:
{comment(f"The categories of the annotations: {names}.", 4)}    {key}: {len(chosen.classes)}
{_anchors(kind, chosen)}"""


def _anchors(kind: Kind, chosen: Choices) -> str:
    low, middle, high = (round(size) for size in chosen.box_sizes)
    boxes = (
        f"Square roots of the boxes' areas, in views of {chosen.scales[-1]} px: {low} to {high} px "
        f"for nine boxes of ten, {middle} px in the middle."
    )
    if not kind.sizes_per_level:
        return comment(f"{kind.name} has no anchors. {boxes}")
    stock = "{:.0f} to {:.0f} px".format(*STOCK_SIZES)
    if chosen.anchors is None:
        why = f"detectron2's anchors, of {stock}, reach the small ones, so none are stated here."
        return comment(f"{boxes} {why}")
    rows = "".join(f"      - {list(row)}\n" for row in chosen.anchors)
    why = (
        f"detectron2's smallest anchors, of {STOCK_SIZES[0]:.0f} px, do not reach the small ones "
        "(an IoU of 0.5 needs at least half the area), so these begin lower. A row for each level."
    )
    if low < chosen.anchors[0][0] / 2**0.5:
        why += " The smallest boxes lie below even these: larger views would show them better."
    return f"  ANCHOR_GENERATOR:\n{comment(f'{boxes} {why}', 4)}    SIZES:\n{rows}"


def _data(chosen: Choices, places: Places) -> str:
    short, long = chosen.image_size
    side = chosen.scales[-1]
    size = (
        f"Images are {short} by {long} px (median), evaluated at {side} px on their shorter side. "
        "Larger ones find smaller objects, and take more memory and time. These sizes are for "
        "training without a teacher; VIEWS in distill.yaml has them for the cache."
    )
    relative = "" if isabs(places.data) else comment("Relative to where commands are started.")
    return f"""\
INPUT:
{comment(size)}  MIN_SIZE_TRAIN: {list(chosen.scales)}
  MAX_SIZE_TRAIN: {chosen.max_size}
  MIN_SIZE_TEST: {side}
  MAX_SIZE_TEST: {chosen.max_size}
DATASET:
{relative}  FOLDER: {quoted(places.data)}
DATASETS:
  TRAIN: ("folder_{places.train}",)
  TEST: ("folder_{places.val}",)
"""


def _schedule(kind: Kind, chosen: Choices) -> str:
    rate = (
        f"detectron2's {kind.rate_for_16:g} for 16 images, in proportion to the batch: where "
        "memory is short, halve both and double the steps."
    )
    length = (
        f"{chosen.epochs} times each of {chosen.num_used:,} images with objects. Small sets are "
        "shown more often, up to 100 times; COCO 12 times or 24."
    )
    return f"""\
SOLVER:
{comment(rate)}  IMS_PER_BATCH: {chosen.batch}
  BASE_LR: {chosen.learning_rate:g}
{comment(length)}  MAX_ITER: {chosen.steps}
{comment("The rate falls to a tenth at two thirds and at eight ninths, as in detectron2's.")}\
  STEPS: {list(chosen.decays)}
  WARMUP_ITERS: {chosen.warmup}
  CHECKPOINT_PERIOD: {chosen.period}
TEST:
{comment(f"Five times in all, on {chosen.num_val:,} images; model_best.pth is kept.")}\
  EVAL_PERIOD: {chosen.period}
"""


def distill_text(kind: Kind, chosen: Choices, places: Places) -> str:
    """The config of the dump and of the distilled student."""
    views = (
        f"{chosen.num_views} of each of {chosen.num_train:,} images are cached: a scale each, "
        "flipped or not. More vary the training, and the cache grows with them; "
        "`python -m stage1_dump plan` tells its size."
    )
    flip = (
        "Where left is not right, as in writing, write 0.0, and INPUT: RANDOM_FLIP: none in "
        "teacher.yaml and student.yaml."
    )
    return f"""\
# Distillation: what student.yaml says, and a teacher. Written as a beginning to change.
_BASE_: student.yaml
VIEWS:
{comment(views)}  NUM: {chosen.num_views}
{comment("As INPUT in student.yaml: change both.")}  SCALES: {list(chosen.scales)}
  MAX_SIZE: {chosen.max_size}
{comment(flip)}  FLIP: 0.5
TEACHER:
  CONFIG: teacher.yaml
{comment("Of its last step; model_best.pth beside it has the best AP.")}\
  WEIGHTS: {quoted(f"{places.results}/teacher/model_final.pth")}
  SOURCE: cache
CACHE:
  LOCATION: {quoted(f"{places.results}/cache")}
  PRESET: balanced
DISTILL:
{comment("The weights rise over these steps, as the first comparisons are noisy.")}\
  WARMUP_ITERS: {chosen.warmup}
{_gid(kind, chosen)}OUTPUT_DIR: {quoted(f"{places.results}/distill")}
VERSION: 2
"""


def _gid(kind: Kind, chosen: Choices) -> str:
    weights = kind.small_weights if chosen.is_small else PAPER_WEIGHTS
    source = (
        f"{kind.small_source} The pyramid there had 96 channels, here it has 256, and the feature "
        "loss is a sum over them. The paper's (5e-4, 40, 0.1, 1) are for COCO, and can harm on "
        "small data. None is known to fit yours: the first steps log the share that each term has "
        "of the loss and of its gradient. Lower what has nearly all, and search on images held "
        "out of the training set."
        if chosen.is_small
        else "The paper's, for COCO and 24 epochs. The first steps log the share that each term "
        "has of the loss and of its gradient: lower what has nearly all."
    )
    lines = [f"{name}_WEIGHT: {float(w)}" for name, w in zip(LOSSES, weights, strict=False)]
    return f"""\
GID:
{comment("Cells that a box is pooled to: the paper's 10, or 5 where most boxes are small.")}\
  ROI_SIZE: {chosen.roi_size}
{comment("Boxes with a shorter side teach nothing: 10 px in the paper, less where objects are.")}\
  MIN_SIDE: {chosen.min_side}
{comment(source)}{indent(chr(10).join(lines), "  ")}
"""


def comment(text: str, spaces: int = 2) -> str:
    """A comment of whole lines, wrapped; `text` may hold names of the user's."""
    text = "".join(one if one.isprintable() else " " for one in text)
    prefix = " " * spaces + "# "
    lines = wrap(text, _WIDTH - len(prefix), break_long_words=False, break_on_hyphens=False)
    return "".join(f"{prefix}{line}\n" for line in lines)


def is_text(text: str) -> bool:
    """Whether a config reads this as it stands: `true` is a switch, `12` a number, `'a'` is `a`."""
    try:
        literal_eval(text)
    except (ValueError, SyntaxError):
        return isinstance(yaml.safe_load(quoted(text)), str)
    return False


def quoted(text: str) -> str:
    """A string of YAML, in quotes only where it needs them."""
    is_plain = re.fullmatch(r"[A-Za-z./~][\w./~-]*(://[\w./-]+)?", text, re.ASCII)
    return text if is_plain else json.dumps(text, ensure_ascii=False)
