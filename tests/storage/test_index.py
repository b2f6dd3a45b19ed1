"""The index: the layouts that it accepts, and that a plan only grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from storage import assign_slots, build_index
from storage.index import COLUMNS, Index, ShardTable
from tests.storage.cases import make_index

INDEX = make_index(num_views=2)


class TestIndex:
    def test_no_shard_spans_two_views_and_views_begin_at_a_shard(self) -> None:
        table = ShardTable(INDEX, 3)
        for shard in table.shards:
            records = table.records_of(shard)
            assert len(set(INDEX.view[records])) == 1
            assert INDEX.slot[records].tolist() == [
                shard.number * 3 + i for i in range(len(records))
            ]
        assert sum(len(table.records_of(shard)) for shard in table.shards) == len(INDEX)

    def test_shards_come_in_plan_order(self) -> None:
        views = [int(INDEX.view[ShardTable(INDEX, 3).records_of(s)[0]]) for s in
                 ShardTable(INDEX, 3).shards]  # fmt: skip
        assert views == sorted(views)

    def test_adding_a_view_moves_no_record(self) -> None:
        grown = make_index(num_views=3)
        assert grown.prefix(len(INDEX)).digest() == INDEX.digest()

    def test_slots_agree_with_a_plain_loop(self) -> None:
        rng = np.random.default_rng(5)
        bucket = rng.integers(0, 4, 300).astype(np.int32)
        view = np.sort(rng.integers(0, 3, 300)).astype(np.int32)
        next_slot: dict[int, int] = {}
        last_view: dict[int, int] = {}
        expected = []
        for b, v in zip(bucket.tolist(), view.tolist(), strict=True):
            if last_view.get(b) != v:
                next_slot[b] = -(-next_slot.get(b, 0) // 8) * 8
                last_view[b] = v
            expected.append(next_slot[b])
            next_slot[b] += 1
        assert assign_slots(bucket, view, 8).tolist() == expected

    @pytest.mark.parametrize(
        ("column", "value", "named"),
        [
            ("slot", lambda old: old[::-1], "slot"),
            ("slot", lambda old: old + 1, "first slots"),
            ("slot", lambda old: np.where(old >= 3, old + 3, old), "without gaps"),
            ("view", lambda old: old + 1, "counted from 0"),
            ("view", lambda old: old * 2, "one after the other"),
            ("view", lambda old: np.where(np.arange(len(old)) < 7, 0, 1), "twice|spans two views"),
            ("image_id", lambda old: np.zeros_like(old), "occurs twice in a view"),
            ("height", lambda old: old * 0, "no pixels"),
            ("bucket", lambda old: 1 - old, "first appearance"),
            ("bucket", lambda old: old - 1, "outside"),
            ("seed", lambda old: old[:-1], "different lengths"),
            ("seed", lambda old: old.astype(float), "expected one dimension of uint64"),
        ],
    )
    def test_broken_layouts_are_refused(
        self, column: str, value: Callable[[Any], Any], named: str
    ) -> None:
        columns = {name: getattr(INDEX, name) for name in COLUMNS}
        columns[column] = value(columns[column])
        with pytest.raises(ValueError, match=named):
            ShardTable(Index(**columns, bucket_names=INDEX.bucket_names), 3)

    def test_a_plan_of_coco_is_built_in_seconds(self) -> None:
        count = 118_287
        rng = np.random.default_rng(0)
        names = np.array([f"{32 * h:04d}x{32 * w:04d}" for h in range(20, 36) for w in range(16)])
        index = build_index(
            image_id=np.tile(np.arange(count), 4), view=np.repeat(np.arange(4), count),
            seed=rng.integers(0, 2**63, 4 * count), height=np.full(4 * count, 800),
            width=np.full(4 * count, 800), bucket=names[rng.integers(0, len(names), 4 * count)],
            shard_records=32,
        )  # fmt: skip
        table = ShardTable(index, 32)
        assert 4 * count / 32 <= len(table) <= 4 * count / 32 + 4 * len(names)
