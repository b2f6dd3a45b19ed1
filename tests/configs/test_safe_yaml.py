"""A config file is read as data: nothing in it runs, and every refusal names its line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.safe_yaml import expand_anchor_sizes, read_yaml

STOCK = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"


def write(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


@given(
    bases=st.lists(st.integers(1, 999_999), min_size=1, max_size=6),
    gap=st.sampled_from(["", " ", "\n  "]),
    one=st.sampled_from(["1.0/3", "1/3", "1.0 / 3.0"]),
)
def test_anchor_sizes_are_what_eval_gives(bases: list[int], gap: str, one: str) -> None:
    numbers = f"{gap},{gap}".join(str(base) for base in bases)
    two = one.replace("1", "2", 1)
    text = f"[{gap}[x,{gap}x*{gap}2**({one}), x *2 ** ({two}){gap}]for x in [{numbers}{gap}]]"

    assert expand_anchor_sizes(text) == eval(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "__import__('os').getcwd()",
        STOCK + " + [1]",
        STOCK.replace("x * 2**(1.0/3)", "x * 3**(1.0/3)"),
        STOCK.replace("32", "f(32)"),
        STOCK.replace("[32", "[-32"),
        STOCK.replace("32", "9" * 7),
    ],
)
def test_any_other_expression_is_left_alone(text: str) -> None:
    assert expand_anchor_sizes(text) is None


def test_the_stock_tag_becomes_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, f'SIZES: !!python/object/apply:eval ["{STOCK}"]\n')

    sizes = read_yaml(path)["SIZES"]

    assert len(sizes) == 5
    assert sizes[0] == [32, 32 * 2 ** (1.0 / 3), 32 * 2 ** (2.0 / 3)]


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/apply:eval [\"open('{marker}', 'w')\"]",
        "!!python/object/apply:eval \"open('{marker}', 'w')\"",
        "!!python/object/new:os.system ['touch {marker}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1, 2]",
        "!mine 3",
    ],
)
def test_other_tags_are_refused_by_line_and_run_nothing(tmp_path: Path, value: str) -> None:
    marker = tmp_path / "ran"
    path = write(tmp_path, f"A: 1\nB:\n  C: {value.format(marker=marker)}\n")

    with pytest.raises(ValueError, match=r"the tag !\S+ is refused") as error:
        read_yaml(path)

    assert str(error.value).startswith(f"{path}:3: ")
    assert not marker.exists()


def test_a_repeated_key_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "VIEWS:\n  NUM: 1\n  FLIP: 0.5\n  NUM: 2\n")

    with pytest.raises(ValueError, match=r"yaml:4: NUM is already set in line 2"):
        read_yaml(path)


def test_keys_remember_their_lines(tmp_path: Path) -> None:
    content = read_yaml(write(tmp_path, "# why\nA: 1\nB:\n  C: 2\n"))

    assert content.lines == {"A": 2, "B": 3}
    assert content["B"].lines == {"C": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A: [1\n", r"yaml:2: not valid YAML"),
        ("A: &a [*a]\n*a : 1\n", r"config\.yaml"),
        ("A: '\x01'\n", r"not a YAML text file"),
        ("A: 2024-13-01\n", r"config\.yaml: not a YAML text file: month must be"),
        (f"A: {5000 * '9'}\n", r"config\.yaml: not a YAML text file: Exceeds the limit"),
        (f"A: {3000 * '['}{3000 * ']'}\n", r"config\.yaml: not a YAML text file: maximum recurs"),
        ("", r"expected a mapping of config nodes, got nothing"),
        ("- 1\n", r"expected a mapping of config nodes, got list"),
        (
            "1: 2\n",
            r"yaml:1: expected a config key, got 1; a name that is a number stands in quotes",
        ),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_not_a_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(write(tmp_path, text))

    assert "\n" not in str(error.value)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x04\xff\xfe")

    with pytest.raises(ValueError, match="not a YAML text file"):
        read_yaml(str(path))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "none.yaml", "does not exist"), (tmp_path, "is no regular")):
        with pytest.raises(FileNotFoundError, match=f"{path} {what}"):
            read_yaml(str(path))
