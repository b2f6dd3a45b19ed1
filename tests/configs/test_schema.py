"""Every field of our nodes is checked, and named as the user wrote it."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from configs.schema import (
    NODES,
    CacheConfig,
    DatasetConfig,
    GidConfig,
    Settings,
    TeacherConfig,
    ViewsConfig,
)

REFUSED: list[tuple[type, dict[str, Any]]] = [
    (ViewsConfig, {"seed": -1}),
    (ViewsConfig, {"seed": 2**63}),
    (ViewsConfig, {"num": 0}),
    (ViewsConfig, {"num": 1.5}),
    (ViewsConfig, {"num": True}),
    (ViewsConfig, {"scales": ()}),
    (ViewsConfig, {"scales": 800}),
    (ViewsConfig, {"scales": (800, 0)}),
    (ViewsConfig, {"scales": (800.0,)}),
    (ViewsConfig, {"max_size": 799}),
    (ViewsConfig, {"flip": 1.01}),
    (ViewsConfig, {"flip": float("nan")}),
    (TeacherConfig, {"config": None}),
    (TeacherConfig, {"weights": 3}),
    (TeacherConfig, {"source": "offline"}),
    (TeacherConfig, {"batch": 0}),
    (TeacherConfig, {"precision": "float64"}),
    (TeacherConfig, {"inherit": "backbone"}),
    (CacheConfig, {"location": None}),
    (CacheConfig, {"preset": "tiny"}),
    (CacheConfig, {"preset": "exact", "dtype": "bfloat16"}),
    (CacheConfig, {"dtype": "float16"}),
    (CacheConfig, {"scores_kept": -1}),
    (CacheConfig, {"preset": "exact", "scores_kept": 100}),
    (CacheConfig, {"shard_records": -1}),
    (CacheConfig, {"shard_bytes": 0}),
    (CacheConfig, {"shard_records": 32, "shard_bytes": 1000}),
    (CacheConfig, {"pixels": "ignore"}),
    (CacheConfig, {"prefetch_bytes": 0}),
    (GidConfig, {"counts": "node"}),
    (GidConfig, {"score": "mean"}),
    (GidConfig, {"mode": "gt"}),
    (GidConfig, {"top_k": 0}),
    (GidConfig, {"pre_nms": 9}),
    (GidConfig, {"nms_iou": 0.0}),
    (GidConfig, {"nms_iou": 1.5}),
    (GidConfig, {"min_side": -1.0}),
    (GidConfig, {"roi_size": 0}),
    (GidConfig, {"sampling_ratio": -1}),
    (GidConfig, {"adaptation": "linear"}),
    (GidConfig, {"feature_weight": -1e-9}),
    (GidConfig, {"relation_weight": float("inf")}),
    (GidConfig, {"relation_scope": "rank"}),
    (GidConfig, {"response_cls_weight": "0.1"}),
    (GidConfig, {"response_reg_weight": True}),
    (GidConfig, {"response_reg_beta": -0.1}),
    (GidConfig, {"warmup_iters": -1}),
    (DatasetConfig, {"folder": 1}),
    (DatasetConfig, {"image_list": 1}),
    (DatasetConfig, {"max_images": -1}),
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
    existing = {(schema, item.name) for schema in NODES for item in fields(schema)}
    assert existing == tried


def test_a_choice_names_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="one of cache, live, none"):
        TeacherConfig(source="offline")


@pytest.mark.parametrize(
    ("schema", "name"), [(CacheConfig, "location"), (TeacherConfig, "weights")]
)
def test_a_url_with_credentials_is_refused_without_repeating_them(schema: Any, name: str) -> None:
    with pytest.raises(ValueError, match="holds credentials") as error:
        schema(**{name: "s3://user:hunter2@bucket/cache"})

    assert "hunter2" not in str(error.value)


def test_urls_without_credentials_and_folders_with_an_at_sign_pass() -> None:
    assert CacheConfig(location="s3://bucket/at@home").location == "s3://bucket/at@home"
    assert CacheConfig(location="data/me@host").location == "data/me@host"


def test_whole_numbers_become_floats_so_that_one_setting_has_one_form() -> None:
    config = GidConfig(relation_weight=40)
    assert repr(config.relation_weight) == "40.0"
    assert config == GidConfig(relation_weight=40.0)


def test_a_list_of_scales_becomes_a_tuple() -> None:
    assert ViewsConfig(scales=[640, 800]).scales == (640, 800)  # type: ignore[arg-type]


def test_configs_do_not_change_after_validation() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().views.num = 2  # type: ignore[misc]


def test_settings_holds_each_node_under_its_lower_case_name() -> None:
    made = Settings()
    assert [type(getattr(made, schema.node.lower())) for schema in NODES] == list(NODES)


def test_the_schema_needs_the_standard_library_alone() -> None:
    heavy = ("torch", "detectron2", "numpy", "yaml", "zarr")
    code = f"import sys, configs.schema; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
