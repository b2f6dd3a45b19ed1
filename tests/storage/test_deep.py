"""Level deep: values that make no sense, and forgeries whose digests all agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import Zstd

from storage import (
    CacheReader,
    CacheWriter,
    CorruptChunkError,
    Report,
    checksums,
    verify,
)
from storage import commit as commits
from storage.layout import commit_key, object_key
from tests.storage.cases import (
    FIRST,
    SHARD_RECORDS,
    make_arrays,
    make_index,
    make_manifest,
    reframe,
)


def kinds(report: Report) -> list[str]:
    return [problem.kind for problem in report.problems]


class TestDeep:
    def write(self, path: Path, change: Callable[[dict[str, Any]], object]) -> Report:
        index = make_index()
        writer = CacheWriter(path, make_manifest(index), index)
        for shard in writer.missing():
            writer.write(shard, make_arrays(writer, shard, change if shard == FIRST else len))
        assert verify(path).ok
        return verify(path, "deep")

    def test_values_that_are_not_finite(self, tmp_path: Path) -> None:
        def change(fields: dict[str, Any]) -> None:
            fields["echo.bound"][1] = np.nan

        report = self.write(tmp_path / "cache", change)
        assert kinds(report) == ["invalid"]
        assert "image 1007, view 0: echo.bound holds NaN or infinity" in report.problems[0].message

    def test_detections(self, tmp_path: Path) -> None:
        def change(fields: dict[str, Any]) -> None:
            fields["detections"][0, 0, 2] = 46

        report = self.write(tmp_path / "cache", change)
        assert "image 1000, view 0: a detection lies outside the view of 45 x 30;" in str(
            report.problems[0]
        )

    def test_a_chunk_that_holds_less_than_a_record(self, cache: Path) -> None:
        # Forged throughout: zstd's data, zarr's table, and every digest.
        array = next(
            one for one in CacheReader(cache).manifest.arrays[FIRST.bucket] if one.compression
        )
        key, count = object_key(FIRST, array), SHARD_RECORDS
        chunk = bytes(Zstd().encode(np.ones(array.num_bytes - 1, dtype=np.uint8)))
        chunk += checksums.crc32c(chunk).to_bytes(4, "little")
        places = np.array([[n * len(chunk), len(chunk)] for n in range(count)], dtype="<u8")
        table = places.tobytes()
        raw = chunk * count + table + checksums.crc32c(table).to_bytes(4, "little")
        (cache / key).write_bytes(raw)
        body = commits.unframe((cache / commit_key(FIRST)).read_bytes(), "commit")
        crc = checksums.crc32c(chunk[:-4])
        body["objects"][key] = {
            "size": len(raw), "xxh3_128": checksums.xxh3_128([raw]),
            "chunks": [[*place, crc] for place in places.tolist()],
        }  # fmt: skip
        (cache / commit_key(FIRST)).write_bytes(reframe(body))
        assert verify(cache).ok
        (problem,) = verify(cache, "deep").problems
        assert (problem.kind, problem.array, problem.spoils) == ("invalid", array.name, True)
        assert f"a chunk is not {array.num_bytes} bytes" in problem.message
        with pytest.raises(CorruptChunkError, match=f"array {array.name}.* does not hold a record"):
            CacheReader(cache).read(0)

    def test_a_commit_that_misstates_a_chunk(self, cache: Path) -> None:
        # Consistent in itself, and every object as it says.
        path = cache / commit_key(FIRST)
        body = commits.unframe(path.read_bytes(), "commit")
        key = next(key for key in body["objects"] if "/echo/" in key)
        body["objects"][key]["chunks"][0][2] ^= 1
        path.write_bytes(reframe(body))
        for level in ("full", "deep"):
            (problem,) = verify(cache, level).problems
            assert (problem.kind, problem.array) == ("damaged", "echo")
            assert "the CRC32C of a chunk is not the one in the commit" in problem.message
