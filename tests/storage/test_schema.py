"""Geometry, fields, arrays and signals: what they are, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from storage import Array, Field, Geometry, Signal
from storage.layout import seal
from storage.schema import check_key
from tests.storage.cases import WIDE, make_index, make_manifest

INDEX = make_index(num_views=2)


SEALED, _ = seal(make_manifest(INDEX), INDEX)


class TestGeometry:
    def test_derived_sizes(self) -> None:
        assert WIDE.name == "0032x0048"
        assert WIDE.level_offsets == (0, 24, 30)
        assert (WIDE.num_positions, WIDE.num_levels) == (30, 2)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ((0, 48, ((4, 6),)), "geometry.height: got 0"),
            ((32, 48.0, ((4, 6),)), "geometry.width: got 48.0"),
            ((32, 48, ()), "number of levels"),
            ((32, 48, ((4, -6),)), "geometry.level_sizes"),
        ],
    )
    def test_impossible_sizes_are_refused(self, arguments: Any, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            Geometry(*arguments)


class TestField:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (("../x", (2,), "int8"), "field name"),
            (("x", (2,), "object"), "dtype 'object'"),
            (("x", (0,), "int8"), "shape: got 0"),
            (("x", (1 << 20, 1 << 20), "float64"), "field x: bytes"),
        ],
    )
    def test_impossible_fields_are_refused(self, arguments: Any, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            Field(*arguments)


class TestArray:
    FIELDS = (
        Field("x.a", (3,), "uint8"),
        Field("x.b", (2, 2), "float32"),
        Field("x.c", (), "int16"),
    )
    ARRAY = Array("x", FIELDS)

    def test_a_field_begins_at_a_multiple_of_its_element_size(self) -> None:
        assert self.ARRAY.offsets == (0, 4, 20) and self.ARRAY.num_bytes == 22

    def test_fields_come_apart_as_they_were_joined_and_gaps_are_zeros(self) -> None:
        rng = np.random.default_rng(0)
        values = {one.name: rng.integers(1, 99, (5, *one.shape)).astype(one.dtype)
                  for one in self.FIELDS}  # fmt: skip
        data = self.ARRAY.join(values)
        assert data.shape == (5, 22) and not data[:, 3].any()
        for field, part in self.ARRAY.split(data):
            np.testing.assert_array_equal(part, values[field.name])
            assert np.shares_memory(part, data)
        for field, part in self.ARRAY.split(data[2]):  # one record
            np.testing.assert_array_equal(part, values[field.name][2])

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda values: values.pop("x.b"), r"fields \['x.b'\] are absent"),
            (
                lambda values: values.update({"x.b": values["x.b"][:-1]}),
                r"x.b is float32\(4, 2, 2\)",
            ),
            (lambda values: values.update({"x.c": values["x.c"].astype("i4")}), "x.c is int32"),
        ],
    )
    def test_fields_that_do_not_fit_are_not_joined(
        self, change: Callable[[dict[str, Any]], Any], named: str
    ) -> None:
        values = {one.name: np.ones((5, *one.shape), one.dtype) for one in self.FIELDS}
        change(values)
        with pytest.raises(ValueError, match=named):
            self.ARRAY.join(values)

    def test_survives_the_trip_through_json(self) -> None:
        packed = replace(self.ARRAY, compression="zstd")
        assert Array.from_json(json.loads(json.dumps(packed.to_json()))) == packed

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (("../x", FIELDS), "array name"),
            (("x.y", FIELDS), "array name"),
            (("x", FIELDS, "pickle"), "compression 'pickle'"),
            (("x", ()), "no fields"),
            (("x", (Field("x.y", (1 << 28,), "float64"),) * 2), "array x: bytes"),
        ],
    )
    def test_impossible_arrays_are_refused(self, arguments: Any, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            Array(*arguments)


class TestSignal:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (
                ("a", "sounds", {}),
                "kind 'sounds', expected one of maps, scores, deltas, boxes, rows",
            ),
            (("a", "maps", {}), r"sizes \[\], expected \['channels'\] for the kind maps"),
            (("a", "maps", {"channels": 2, "anchors": 3}), r"sizes \['anchors', 'channels'\]"),
            (("a", "maps", {"channels": 0}), "signal a: channels: got 0"),
            (("record", "maps", {"channels": 2}), "signal record: every record has something"),
            (
                ("detections", "maps", {"channels": 2}),
                "signal detections: every record has something",
            ),
            (("../a", "maps", {"channels": 2}), "signal name: got '../a', expected letters"),
            (("a.b", "maps", {"channels": 2}), "signal name: got 'a.b', expected letters"),
        ],
    )
    def test_impossible_signals_are_refused(self, arguments: Any, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            Signal(*arguments)

    @pytest.mark.parametrize(
        ("kind", "sizes", "shape"),
        [
            ("maps", {"channels": 5}, (5, 30)),
            ("scores", {"anchors": 2, "classes": 7}, (60, 7)),
            ("deltas", {"anchors": 2}, (60, 4)),
            ("boxes", {"rows": 9}, (9, 4)),
            ("rows", {"rows": 9, "columns": 3}, (9, 3)),
        ],
    )
    def test_shapes_follow_from_kind_sizes_and_geometry(
        self, kind: str, sizes: dict[str, int], shape: tuple[int, ...]
    ) -> None:
        assert Signal("a", kind, sizes).shape(WIDE) == shape


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "..", "a/../b", "a//b", "a/", ".hidden", "a\\b", "a\0b", "a b", 7]
)
def test_keys_that_could_leave_the_prefix_are_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="does not name an object"):
        check_key(key)
