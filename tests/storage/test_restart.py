"""Beginning a store again: what nothing is committed of stands in nobody's way."""

from __future__ import annotations

import shutil
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest

from storage import IdentityError, read_logs, verify
from storage.layout import commit_key, object_key
from storage.location import Location
from tests.storage.cases import NewLocation, contents, fill, make_arrays, make_cache, open_writer

OTHER = {"tensors": "ef" * 32}


class TestBeginningAgain:
    """A store of which nothing is committed stands in nobody's way."""

    @pytest.mark.parametrize(
        ("changes", "num_views"), [({"teacher": OTHER}, 1), ({}, 1), ({"teacher": OTHER}, 3)]
    )
    def test_without_a_commit_another_contract_begins_it_again_and_says_so(
        self, new_location: NewLocation, changes: Any, num_views: int,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        place, alone = new_location(), new_location()
        dead = open_writer(place, num_views=2)
        dead.write_log("dump-1-rank0", {"rank": 0})
        shard = dead.missing()[0]
        assert dead.claim(shard, "dead", 0.0)
        array = dead.manifest.arrays[shard.bucket][0]
        place.put(object_key(shard, array), b"half of what the dead one wrote")
        writer = open_writer(place, num_views=num_views, **changes)
        assert "Nothing of it is committed, so it is begun again." in caplog.text
        assert ("teacher.tensors: stored" in caplog.text) == bool(changes)
        assert read_logs(str(place)) == {} if place.is_local else True
        fill(writer)
        fill(open_writer(alone, num_views=num_views, **changes))
        assert contents(place) == contents(alone) and verify(place).ok

    def test_with_one_commit_it_is_refused_and_left_alone(self, new_location: NewLocation) -> None:
        place = new_location()
        writer = open_writer(place)
        fill(writer, writer.missing()[:1])
        before = contents(place)
        with pytest.raises(IdentityError, match="is another cache"):
            open_writer(place, teacher=OTHER)
        assert contents(place) == before

    def test_under_work_it_is_refused(self, new_location: NewLocation) -> None:
        place = new_location()
        writer = open_writer(place)
        assert writer.claim(writer.missing()[0], "rank 1", 60)
        before = contents(place)
        with pytest.raises(IdentityError, match=r"(?s)is another cache.*held by rank 1 until"):
            open_writer(place, teacher=OTHER)
        assert contents(place) == before

    def test_what_may_be_a_commit_counts_as_one(self, tmp_path: Path) -> None:
        writer = open_writer(tmp_path / "cache")
        path = tmp_path / "cache" / commit_key(writer.missing()[0])
        path.parent.mkdir(parents=True)
        path.symlink_to(path)
        with pytest.raises(IdentityError):
            open_writer(tmp_path / "cache", teacher=OTHER)

    @pytest.mark.parametrize("views", [1, 2])
    def test_the_writer_before_is_refused_at_its_first_commit(
        self, new_location: NewLocation, views: int
    ) -> None:
        place, alone = new_location(), new_location()
        before = open_writer(place, num_views=2)
        after = open_writer(place, num_views=views, teacher=OTHER if views == 2 else {})
        shard = before.missing()[0]
        assert before.claim(shard, "before", 60)  # too late to be seen by the other one
        with pytest.raises(IdentityError, match="is another cache"):
            before.write(shard, make_arrays(before, shard))
        assert after.claim(shard, "after", 60)
        fill(after)
        fill(open_writer(alone, num_views=views, teacher=OTHER if views == 2 else {}))
        assert contents(place) == contents(alone)

    def test_a_beginning_cut_anywhere_can_be_done_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_cache(tmp_path / "alone", teacher=OTHER)
        steps = 0
        while True:
            place = tmp_path / f"cut{steps}"
            open_writer(place, num_views=2)
            left = [steps]

            def cut(work: Any, *rest: Any, left: list[int] = left) -> Any:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
                return work(*rest)

            with monkeypatch.context() as patch:
                for name in ("put", "delete_many"):
                    work = getattr(Location, name)
                    patch.setattr(Location, name, partialmethod(partial(cut, work)))
                try:
                    open_writer(place, teacher=OTHER)
                    break
                except KeyboardInterrupt:
                    pass
            shutil.rmtree(place / "claims", ignore_errors=True)  # they expire
            make_cache(place, teacher=OTHER)
            assert contents(place) == contents(tmp_path / "alone")
            steps += 5
        assert steps > 20
