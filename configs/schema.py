"""The project's own config nodes as frozen dataclasses that check themselves.

This is the single source of their keys, defaults and limits: the loader derives the yacs defaults
from it. A field `shard_records` of the node `CACHE` is the YAML key `CACHE.SHARD_RECORDS`. Only the
standard library is needed here, so that every package can depend on it at no cost.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from configs.rules import MAX_WHOLE, Choice, Number, Place, Rule, Several, Text, Whole
from configs.stock_limits import MAX_SIDE, WEIGHTS_SCHEMES

MAX_SEED = 2**63 - 1
# More is a mistake: a view of every image costs what an epoch of the teacher does.
MAX_VIEWS = 10_000
# What the cache format allows in one shard.
MAX_SHARD_RECORDS = 2**16
DEFAULT_SHARD_BYTES = 2**27
# Weights and lengths that no loss has use for.
_MAX_WEIGHT = 1e9


class _Rules:
    """Checks one dataclass field at a time and names it `NODE.KEY` in every error."""

    def __init__(self, node: str, config: object) -> None:
        self._node = node
        self._config = config

    def refuse(self, name: str, expected: str) -> ValueError:
        value = getattr(self._config, name)
        return ValueError(f"{self._node}.{name.upper()}: expected {expected}, got {value!r}")

    def check(self, name: str, rule: Rule) -> None:
        if not rule.accepts(getattr(self._config, name)):
            raise self.refuse(name, rule.expected)

    def integer(self, name: str, *, at_least: int, at_most: int = MAX_WHOLE) -> None:
        self.check(name, Whole(at_least, at_most))

    def number(
        self, name: str, *, at_least: float = 0.0, at_most: float, above: float | None = None
    ) -> None:
        """Check a finite number and store it as float, so that 1 and 1.0 are one setting."""
        self.check(name, Number(at_least=at_least, at_most=at_most, above=above))
        object.__setattr__(self._config, name, float(getattr(self._config, name)))

    def choice(self, name: str, allowed: tuple[str, ...]) -> None:
        self.check(name, Choice(allowed))

    def text(self, name: str) -> None:
        self.check(name, Text())

    def place(self, name: str, schemes: tuple[str, ...] = ()) -> None:
        """Check a path or URL; credentials in a URL would end up in logs and saved configs."""
        self.text(name)
        # The value is not repeated: it holds the secret.
        if Place.holds_credentials(getattr(self._config, name)):
            raise ValueError(
                f"{self._node}.{name.upper()}: the URL holds credentials; take them out and give "
                "them through the environment of the storage client"
            )
        self.check(name, Place(schemes))


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Node VIEWS: the deterministic augmentation that both stages apply.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "VIEWS"

    # Base seed; a view's own seed is a hash of (seed, image id, view number).
    seed: int = 0
    # Views of each image in the cache. More views only append records.
    num: int = 1
    # Lengths of the shortest edge to choose from, pixels.
    scales: tuple[int, ...] = (800,)
    # Longest edge allowed after resizing, pixels.
    max_size: int = 1333
    # Probability of a horizontal flip, 0 to 1.
    flip: float = 0.5

    def __post_init__(self) -> None:
        rules = _Rules(self.node, self)
        rules.integer("seed", at_least=0, at_most=MAX_SEED)
        rules.integer("num", at_least=1, at_most=MAX_VIEWS)
        rules.check("scales", Several(item=Whole(1, MAX_SIDE)))
        object.__setattr__(self, "scales", tuple(self.scales))
        rules.integer("max_size", at_least=1, at_most=MAX_SIDE)
        rules.number("flip", at_most=1.0)
        if self.max_size < max(self.scales):
            raise rules.refuse("max_size", f"at least the largest of VIEWS.SCALES {self.scales}")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Node TEACHER: which teacher, and where a distilled step takes its outputs from.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "TEACHER"
    SOURCES: ClassVar[tuple[str, ...]] = ("cache", "live", "none")
    PRECISIONS: ClassVar[tuple[str, ...]] = ("float32", "tf32", "bfloat16", "float16")
    INHERITED: ClassVar[tuple[str, ...]] = ("none", "head")

    # The teacher's own YAML, relative to the file that states it, like `_BASE_`; or
    # model_zoo://NAME, one of those that detectron2 ships.
    config: str = ""
    # The teacher's weights; path relative to the working directory, or a detectron2 URL.
    weights: str = ""
    # cache: read the teacher cache; live: run the teacher in every step; none: ground truth only.
    source: str = "cache"
    # Images in one teacher forward. It moves the last bits, so the manifest records it.
    batch: int = 8
    # Arithmetic of the teacher's forward, in a dump and live. tf32 is float32 whose products a GPU
    # may round to 10 bits of mantissa.
    precision: str = "float32"
    # What the student starts with of the teacher's weights, where shapes agree: nothing, or the
    # tensors of its head.
    inherit: str = "none"

    def __post_init__(self) -> None:
        rules = _Rules(self.node, self)
        rules.place("config", ("model_zoo",))
        rules.place("weights", WEIGHTS_SCHEMES)
        rules.choice("source", self.SOURCES)
        rules.integer("batch", at_least=1, at_most=2**16)
        rules.choice("precision", self.PRECISIONS)
        rules.choice("inherit", self.INHERITED)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Node CACHE: where the teacher cache is and how its records are encoded.

    Raises:
        ValueError: a field is outside its limits, or set although the preset does not use it.
    """

    node: ClassVar[str] = "CACHE"
    PRESETS: ClassVar[tuple[str, ...]] = ("exact", "balanced", "compact")
    DTYPES: ClassVar[tuple[str, ...]] = ("float32", "float16")
    PIXELS: ClassVar[tuple[str, ...]] = ("strict", "tolerate")
    # Object stores that the storage knows.
    SCHEMES: ClassVar[tuple[str, ...]] = ("s3", "gs", "az")

    # Folder, or URL of an object store (s3://bucket/prefix).
    location: str = ""
    # Codec choice.
    preset: str = "balanced"
    # Storage type of preset exact.
    dtype: str = "float32"
    # Class scores kept exactly in one record by the sparse presets; 0: the preset's own rule.
    scores_kept: int = 0
    # Records in one shard, the unit of computing, committing and verifying; 0: as many as
    # SHARD_BYTES holds of the largest view that VIEWS allows, in whole teacher batches.
    shard_records: int = 32
    # Size that no object of a shard exceeds before compression, bytes, with SHARD_RECORDS 0.
    shard_bytes: int = DEFAULT_SHARD_BYTES
    # strict: a view whose pixels differ from the cached ones is an error; tolerate: it is logged,
    # with how much they differ, unless that is too much for another version of a library.
    pixels: str = "strict"
    # Bytes of views and records that the data workers of one rank hold ready at most, one batch
    # being always allowed.
    prefetch_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        rules = _Rules(self.node, self)
        rules.place("location", self.SCHEMES)
        rules.choice("preset", self.PRESETS)
        rules.choice("dtype", self.DTYPES)
        rules.integer("scores_kept", at_least=0)
        rules.integer("shard_records", at_least=0, at_most=MAX_SHARD_RECORDS)
        rules.integer("shard_bytes", at_least=1, at_most=2**40)
        rules.choice("pixels", self.PIXELS)
        rules.integer("prefetch_bytes", at_least=1, at_most=2**50)
        # An option that is accepted and ignored misleads.
        if self.preset != "exact" and self.dtype != "float32":
            raise rules.refuse("dtype", f"float32 with CACHE.PRESET {self.preset}")
        if self.preset == "exact" and self.scores_kept != 0:
            raise rules.refuse("scores_kept", "0 with CACHE.PRESET exact, which keeps every score")
        if self.shard_records != 0 and self.shard_bytes != DEFAULT_SHARD_BYTES:
            raise rules.refuse(
                "shard_bytes",
                f"{DEFAULT_SHARD_BYTES} (the default) with CACHE.SHARD_RECORDS other than 0",
            )

    @property
    def preset_parameters(self) -> dict[str, Any]:
        """The preset's parameters that differ from its own defaults, by name."""
        if self.preset == "exact":
            return {"dtype": self.dtype}
        return {"scores_kept": self.scores_kept} if self.scores_kept else {}


@dataclass(frozen=True, kw_only=True)
class GidConfig:
    """Node GID: selection of general instances and the three distillation losses.

    Defaults are the paper's for COCO (Dai et al., CVPR 2021, section 4.1).

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "GID"
    SCORES: ClassVar[tuple[str, ...]] = ("per_class", "max")
    MODES: ClassVar[tuple[str, ...]] = ("all", "pos", "semi_pos", "neg")
    ADAPTATIONS: ClassVar[tuple[str, ...]] = ("conv3x3", "conv1x1", "none")
    SCOPES: ClassVar[tuple[str, ...]] = ("batch", "image")
    COUNTS: ClassVar[tuple[str, ...]] = ("rank", "global")

    # per_class: max over classes of |P_t - P_s| (the paper); max: |max P_t - max P_s|.
    score: str = "per_class"
    # Which GIs take part: all, or by their overlap with ground truth (ablation).
    mode: str = "all"
    # GIs of one image after NMS (the paper's K).
    top_k: int = 10
    # Candidates of one image before NMS.
    pre_nms: int = 3000
    # IoU above which the lower-scored of two GI boxes is dropped.
    nms_iou: float = 0.3
    # GI boxes with a side of this or less are dropped, pixels of the view.
    min_side: float = 10.0
    # Output side of ROIAlign, cells.
    roi_size: int = 10
    # Samples of one ROIAlign cell along each axis; 0 lets it depend on the box.
    sampling_ratio: int = 2
    # Layer that brings the student's features to the teacher's before the comparison.
    adaptation: str = "conv3x3"
    # Weight of the feature loss.
    feature_weight: float = 5e-4
    # Weight of the relation loss.
    relation_weight: float = 40.0
    # GIs whose pairs are compared: those of the whole batch, or of each image.
    relation_scope: str = "batch"
    # Weight of the classification part of the response loss.
    response_cls_weight: float = 0.1
    # Weight of the box part of the response loss.
    response_reg_weight: float = 1.0
    # Beta of its smooth L1; 0 is plain L1.
    response_reg_beta: float = 0.0
    # What losses are divided by, the detector's own included: counts of the rank's images, as in
    # stock detectron2, or of all ranks' images, so that any number of ranks trains alike.
    counts: str = "rank"
    # Iterations over which all four weights rise linearly from zero; 0: none.
    warmup_iters: int = 0

    def __post_init__(self) -> None:
        rules = _Rules(self.node, self)
        rules.choice("score", self.SCORES)
        rules.choice("mode", self.MODES)
        rules.integer("top_k", at_least=1)
        rules.integer("pre_nms", at_least=1)
        rules.number("nms_iou", above=0.0, at_most=1.0)
        rules.number("min_side", at_most=MAX_SIDE)
        rules.integer("roi_size", at_least=1, at_most=256)
        rules.integer("sampling_ratio", at_least=0, at_most=256)
        rules.choice("adaptation", self.ADAPTATIONS)
        rules.number("feature_weight", at_most=_MAX_WEIGHT)
        rules.number("relation_weight", at_most=_MAX_WEIGHT)
        rules.choice("relation_scope", self.SCOPES)
        rules.number("response_cls_weight", at_most=_MAX_WEIGHT)
        rules.number("response_reg_weight", at_most=_MAX_WEIGHT)
        rules.number("response_reg_beta", at_most=_MAX_WEIGHT)
        rules.choice("counts", self.COUNTS)
        rules.integer("warmup_iters", at_least=0)
        if self.pre_nms < self.top_k:
            raise rules.refuse("pre_nms", f"at least GID.TOP_K {self.top_k}")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Node DATASET: a COCO-format folder of the user's own, and which of the images to use.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "DATASET"

    # Folder to register: its annotations/instances_<split>.json become datasets folder_<split>.
    folder: str = ""
    # Text file of the ids of the images to use, one a line; relative to the working directory.
    # Empty: all. A training may use some of the images that its cache holds.
    image_list: str = ""
    # Use only the first images by id, of the list if there is one; 0: all.
    max_images: int = 0

    def __post_init__(self) -> None:
        rules = _Rules(self.node, self)
        rules.place("folder")
        rules.place("image_list")
        rules.integer("max_images", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every node of our own, validated."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    gid: GidConfig = field(default_factory=GidConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)


# `Settings` has one field of each, by the node's lower-case name.
NODES = (ViewsConfig, TeacherConfig, CacheConfig, GidConfig, DatasetConfig)
