"""Every field of our nodes is checked, and named as the user wrote it."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, field, fields, make_dataclass
from pathlib import Path
from typing import Any

import pytest

from configs import nodes, stock_limits
from configs.loader import default_config
from configs.nodes import (
    FIELD_NODES,
    NODES,
    BoxesConfig,
    CacheConfig,
    CwdConfig,
    DatasetConfig,
    DistillConfig,
    FgdConfig,
    FrsConfig,
    GidConfig,
    MgdConfig,
    MimicConfig,
    PkdConfig,
    PseudoConfig,
    Settings,
    StudentViewsConfig,
    TeacherConfig,
    ViewsConfig,
    register_node,
)

NAN, INF, LARGE = float("nan"), float("inf"), 10**20
WEIGHTS: list[Any] = [-1e-9, 1e10, NAN, INF, "x"]
FACTORS: list[Any] = [1.0, (1.0,), (-0.1, 1.0), (0.5, 11.0), (1.5, 0.5), (0.5, NAN)]
NAMES: list[Any] = ["p3", ("",), (3,)]
JITTER: dict[str, Any] = {
    "scales": (), "max_size": 0, "fixed_size": (64, 64),
}  # fmt: skip

# For every field: values below its limits, above them, and of a wrong type.
WRONG: dict[type, dict[str, list[Any]]] = {
    ViewsConfig: {
        "seed": [-1, 2**63, 1.5],
        "num": [0, 10_001, 10**9, 1.5, True],
        "scales": [(), 800, (800, 0), (70_000,), (800.0,)],
        "max_size": [0, 799, 70_000, "1333"],
        "flip": [-0.1, 1.01, NAN, "x"],
        "flip_vertical": [-0.1, 1.01, NAN, "x"],
        "crop": [
            3,
            ("relative",),
            ("square", 1, 1),
            ("relative", 0.5, 1.1),
            ("relative_range", 0.0, 0.5),
            ("absolute", 50, 50.5),
            ("absolute_range", 50, 40),
        ],
        "scale_range": [0.1, (0.1,), (0.0, 2.0), (0.1, NAN)],
        "fixed_size": [64, (64,), (64, 0), (64, 70_000), (64.0, 64.0)],
        "brightness": FACTORS,
        "contrast": FACTORS,
        "saturation": FACTORS,
        "hue": [0.1, (0.1,), (-0.6, 0.1), (0.0, 0.6), (0.1, -0.1)],
        "plain": [0, (-1,), (10_000,), (1, 1), (0.5,)],
        "last": [0, (-1,), (10_000,), (1, 1)],
        "last_iters": [-1, LARGE, 1.5, 100],
        "steps": ["gray", ("",), (3,)],
    },
    StudentViewsConfig: {
        "brightness": FACTORS,
        "contrast": FACTORS,
        "saturation": FACTORS,
        "hue": [0.1, (0.1,), (-0.6, 0.1), (0.0, 0.6), (0.1, -0.1)],
        "grayscale": [-0.1, 1.1, NAN, "x"],
        "blur": [0.5, (0.5,), (0.0, 0.1, 2.0), (0.5, 0.0, 2.0), (0.5, 2.0, 0.1), (1.5, 0.1, 2.0)],
        "erasing": [0.5, (0.5,), (0.0, 0.1, 0.2), (0.5, 0.1, 1.2), (0.5, 0.2, 0.1)],
    },
    TeacherConfig: {
        "config": [None, "https://host/teacher.yaml"],
        "weights": [3, "gopher://host/teacher.pth"],
        "source": ["offline", 1],
        "batch": [0, 2**16 + 1, 1.5],
        "precision": ["float64", 16],
        "inherit": ["backbone", "neck", "head+neck", True],
        "classes": ["cat", ("",), (3,)],
    },
    CacheConfig: {
        "location": [None, "ftp://host/cache", "file:///cache"],
        "preset": ["", 1],
        "dtype": ["bfloat16", "float16", 16],
        "scores_kept": [-1, LARGE, 1.5],
        "signals": ["features", ("",), (3,)],
        "levels": ["p3", ("",), (3,)],
        "shard_records": [-1, 2**16 + 1, 1.5],
        "shard_bytes": [0, LARGE, 1.5],
        "pixels": ["ignore", 1],
        "writers": [0, LARGE, 1.5],
        "prefetch_bytes": [0, LARGE, 1.5],
    },
    GidConfig: {
        "score": ["mean", 1],
        "mode": ["gt", 1],
        "top_k": [0, LARGE, 1.5],
        "pre_nms": [0, 9, LARGE, 1.5],
        "nms_iou": [0.0, 1.5, NAN, "x"],
        "min_side": [-1.0, 1e6, NAN, "x"],
        "roi_size": [0, 257, 1.5],
        "sampling_ratio": [-1, 257, 1.5],
        "adaptation": ["linear", 1],
        "feature_weight": [-1e-9, 1e10, NAN, "x"],
        "relation_weight": [-1.0, INF, "x"],
        "relation_scope": ["rank", 1],
        "response_cls_weight": [-1.0, 1e10, "0.1"],
        "response_reg_weight": [-1.0, 1e10, True],
        "response_reg_beta": [-0.1, 1e10, NAN, "x"],
        "box_head_cls_weight": [-1.0, 1e10, "x"],
        "box_head_reg_weight": [-1.0, 1e10, True],
        "boxes": ["gt", 1],
    },
    DistillConfig: {
        "methods": [(), "gid", ("",), (3,), ("gid", "gid")],
        "counts": ["node", 1],
        "warmup_iters": [-1, LARGE, 1.5],
        "unlabeled_share": [0.0, -0.1, 1.1, NAN, "x"],
    },
    PkdConfig: {"weight": WEIGHTS, "levels": NAMES},
    CwdConfig: {"weight": WEIGHTS, "temperature": [0.0, -1.0, 1e7, NAN, "x"], "levels": NAMES},
    MgdConfig: {"weight": WEIGHTS, "masked": [-0.1, 1.1, NAN, "x"], "levels": NAMES},
    MimicConfig: {"weight": WEIGHTS, "levels": NAMES},
    FrsConfig: {
        "feature_weight": WEIGHTS,
        "cls_weight": WEIGHTS,
        "ramp_iters": [-1, LARGE, 1.5],
        "levels": NAMES,
    },
    FgdConfig: {
        "foreground_weight": WEIGHTS,
        "background_weight": WEIGHTS,
        "attention_weight": WEIGHTS,
        "relation_weight": WEIGHTS,
        "temperature": [0.0, -1.0, 1e7, NAN, "x"],
        "levels": NAMES,
    },
    BoxesConfig: {"weight": WEIGHTS},
    PseudoConfig: {"min_score": [-0.1, 1.1, NAN, "x"], "max_iou": [0.0, 1.1, NAN, "x"]},
    DatasetConfig: {
        "folder": [1, "s3://bucket/data"],
        "image_list": [1, "s3://bucket/list.txt"],
        "max_images": [-1, LARGE, 1.5],
        "exclude": [1, "s3://bucket/list.txt"],
    },
}
REFUSED: list[tuple[type, dict[str, Any]]] = [
    *(
        (schema, {name: value})
        for schema, fields_of in WRONG.items()
        for name, values in fields_of.items()
        for value in values
    ),
    (ViewsConfig, {"last": (0,), "last_iters": 0}),
    (ViewsConfig, {"scale_range": (0.1, 2.0), "scales": (800,)}),
    (ViewsConfig, {"scale_range": (0.1, 2.0), "scales": (), "max_size": 1333}),
    (ViewsConfig, {"scale_range": (0.1, 2.0), "scales": (), "max_size": 0, "fixed_size": ()}),
    (ViewsConfig, {**JITTER, "scale_range": (2.0, 0.1)}),
    (ViewsConfig, {**JITTER, "scale_range": (0.1, 2000.0)}),
    (CacheConfig, {"preset": "exact", "dtype": "bfloat16"}),
    (CacheConfig, {"preset": "exact", "scores_kept": 100}),
    (CacheConfig, {"shard_records": 32, "shard_bytes": 1000}),
]


@pytest.mark.parametrize(("schema", "values"), REFUSED)
def test_a_value_outside_its_limits_is_refused_by_node_and_key(
    schema: Any, values: dict[str, Any]
) -> None:
    name, value = list(values.items())[-1]

    with pytest.raises(ValueError) as error:
        schema(**values)

    message = str(error.value)
    assert message.startswith(f"{schema.node}.{name.upper()}: expected ")
    assert message.endswith(f"got {value!r}")


def test_every_field_of_every_node_has_a_refused_value() -> None:
    tried = {(schema, name) for schema, values in REFUSED for name in list(values)[-1:]}
    existing = {(schema, item.name) for schema in NODES.values() for item in fields(schema)}
    assert existing == tried


def test_a_choice_names_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="one of cache, live, none"):
        TeacherConfig(source="offline")


@pytest.mark.parametrize("begin", ["s3:/", "s3://", " s3://", "s://", "'s3://"])
@pytest.mark.parametrize(
    ("schema", "name"), [(CacheConfig, "location"), (TeacherConfig, "weights")]
)
def test_a_url_with_credentials_is_refused_without_repeating_them(
    schema: Any, name: str, begin: str
) -> None:
    with pytest.raises(ValueError, match="holds credentials") as error:
        schema(**{name: f"{begin}user:hunter2@bucket/cache"})

    assert "hunter2" not in str(error.value)


def test_urls_without_credentials_and_folders_with_an_at_sign_pass() -> None:
    assert CacheConfig(location="s3://bucket/at@home").location == "s3://bucket/at@home"
    assert CacheConfig(location="data/me@host").location == "data/me@host"
    assert CacheConfig(location="/data/run:2/me@host").location == "/data/run:2/me@host"


@pytest.mark.parametrize("text", ["s3:/bucket/x", "S3:/bucket/x", "s3:bucket/x", "s3:", "http:/x"])
def test_a_url_that_lacks_a_slash_is_no_folder(text: str) -> None:
    with pytest.raises(ValueError, match="local path, or a URL of s3://"):
        CacheConfig(location=text)


@pytest.mark.parametrize("text", ["C:/caches", "./s3:/bucket/x", "run:2/cache", "/data/s3:/x"])
def test_a_folder_may_have_a_colon_in_its_name(text: str) -> None:
    assert CacheConfig(location=text).location == text


def test_whole_numbers_become_floats_so_that_one_setting_has_one_form() -> None:
    config = GidConfig(relation_weight=40)
    assert repr(config.relation_weight) == "40.0"
    assert config == GidConfig(relation_weight=40.0)


def test_a_list_of_scales_becomes_a_tuple() -> None:
    assert ViewsConfig(scales=[640, 800]).scales == (640, 800)  # type: ignore[arg-type]


def test_configs_do_not_change_after_validation() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().views.num = 2  # type: ignore[misc]


def test_limits_that_the_storage_sets_are_the_storage_s() -> None:
    from storage.schema import MAX_SHARD_RECORDS, MAX_SIDE

    assert stock_limits.MAX_SIDE == MAX_SIDE
    assert nodes.cache.MAX_SHARD_RECORDS == MAX_SHARD_RECORDS


def test_settings_holds_the_nodes_of_all_runs_under_its_lower_case_name() -> None:
    made = Settings()
    assert {name: type(getattr(made, name.lower())) for name in FIELD_NODES} == {
        name: NODES[name] for name in FIELD_NODES
    }


def test_settings_has_each_node_by_its_name_too() -> None:
    made = Settings(others={"MINE": "mine"})
    assert made["DISTILL"] is made.distill
    assert made["MINE"] == "mine"
    with pytest.raises(KeyError, match="YOURS"):
        made["YOURS"]


def named(name: Any, default: Any = 1) -> type:
    made = make_dataclass("Mine", [("width", Any, default)], namespace={"node": name})
    made.__module__ = "my"  # an argument of `make_dataclass` from Python 3.12 on
    return made


class Plain:
    node = "PLAIN"


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (named("GID"), r"^my\.Mine: the name GID is taken by configs\.nodes\.gid\.GidConfig; cho"),
        (named("MODEL"), r"^my\.Mine: the name MODEL is taken by detectron2\.config\.get_cfg"),
        (named("SEED"), r"the name SEED is taken by detectron2\.config\.get_cfg"),
        (named("IMPORTS"), r"the name IMPORTS is taken by configs\.loader"),
        (named("_BASE_"), r"^my\.Mine\.node: expected the node's name in capitals, got '_BASE_'"),
        (named("mine"), r"expected the node's name in capitals, got 'mine'"),
        (named(None), r"expected the node's name in capitals, got None"),
        (named("MINE", field()), r"^my\.Mine\.width: expected a default that is one of tuple, "),
        (named("MINE", field(default_factory=list)), r"^my\.Mine\.width: expected a default"),
        (named("MINE", Path("a")), r"^my\.Mine\.width: expected a default"),
        (Plain, r"Plain: expected a dataclass; put @register_node above @dataclass"),
    ],
)
def test_a_class_that_can_be_no_node_is_refused(node: type, expected: str) -> None:
    before = dict(NODES)
    with pytest.raises(ValueError, match=expected):
        register_node(node)
    assert before == NODES


def test_every_key_of_the_top_of_a_config_is_taken() -> None:
    for name in default_config():
        with pytest.raises(ValueError, match=f"the name {name} is taken by"):
            register_node(named(name))


def test_the_nodes_need_the_standard_library_alone() -> None:
    heavy = ("torch", "detectron2", "numpy", "yaml", "zarr")
    code = f"import sys, configs.nodes; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
