"""The runs file, and those that ship."""

from pathlib import Path

import pytest

from configs.loader import load_config
from detectors.run_record import run_digest
from stage2_distill.sweep.runs_file import read_rows

ROOT = Path(__file__).resolve().parents[3] / "configs"
SHIPPED = sorted((ROOT / "sweeps").glob("*.yaml"))


def write(folder: Path, text: str) -> str:
    path = folder / "runs.yaml"
    path.write_text(text)
    return str(path)


def test_rows_keep_their_order_and_take_dots_or_nodes(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "common: {GID.TOP_K: 5, SOLVER: {MAX_ITER: 9}}\n"
        "rows:\n  z: {}\n  a b: {GID: {MODE: pos, TOP_K: 7}}\n",
    )
    first, second = read_rows(path)
    assert (first.name, first.place) == ("z", f"{path}:3")
    assert first.overrides == (("GID.TOP_K", 5), ("SOLVER.MAX_ITER", 9))
    assert (second.name, dict(second.overrides)) == (
        "a b", {"GID.TOP_K": 7, "SOLVER.MAX_ITER": 9, "GID.MODE": "pos"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("row: {a: {}}", r"runs\.yaml:1: unknown key row, did you mean rows\?"),
        ("_BASE_: x", r"unknown key _BASE_\. Expected `rows`"),
        ("common: {}", "expected `rows:` with at least one named row, got None"),
        ("rows: {}", "expected `rows:` with at least one named row"),
        ("rows: {a: {}, a: {}}", "a is already set in line 1"),
        ("rows:\n  a:\n", r":2: row 'a': expected config keys .*, or {} for none, got None"),
        ("rows: {a: [GID.TOP_K, 5]}", "row 'a': expected config keys with their values"),
        ("rows: {a: {GID.TOP_K: 5, GID: {TOP_K: 6}}}", "row 'a': GID.TOP_K is set twice"),
        ("rows: {a: {SEED: 3}}", "row 'a': SEED cannot be set here: --seeds gives it"),
        ("rows: {a: {OUTPUT_DIR: x}}", "OUTPUT_DIR cannot be set here: --output gives it"),
        ("common: {DATASETS: {TEST: []}}\nrows: {a: {}}", ":1: common: DATASETS.TEST cannot be"),
        ("rows: {a: {GID.TOP_K: !!python/name:os.system ''}}", "is refused"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_rows(write(tmp_path, text))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_row_of_a_shipped_file_is_a_config_of_its_own(path: Path) -> None:
    rows = read_rows(str(path))
    base = str(ROOT / "distill" / "r50_2x_from_r101_1x.yaml")
    digests = set()
    for row in rows:
        pairs = [part for pair in row.overrides for part in pair]
        digests.add(run_digest(load_config(base, pairs)))
    assert len(digests) == len(rows) >= 2
