"""Files of weights, as others write them: taken where they are what they should be, or refused."""

import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detectors.weights_file import WeightsFileError, read_weights_file

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(4)}


def prefixed(*prefixes: str) -> dict[str, Tensor]:
    return {"".join(prefixes) + name: tensor for name, tensor in WEIGHTS.items()}


FORMS: dict[str, Any] = {
    "detectron2": {"model": WEIGHTS, "iteration": 5, "optimizer": {"state": {}}},
    "plain": WEIGHTS,
    "plain with more": {**WEIGHTS, "epoch": 3, "lr": np.float32(0.5), 7: None},
    "mmdetection": {"meta": {"epoch": 12, "CLASSES": ("a",)}, "state_dict": WEIGHTS},
    "Lightning": {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}},
    "PyTorch's tutorial": {"epoch": 1, "model_state_dict": WEIGHTS, "loss": torch.ones(1)},
    "data parallelism": {"model": prefixed("module.")},
    "compiled and parallel": prefixed("module.", "_orig_mod."),
    "parallel and compiled": prefixed("_orig_mod.", "module."),
    "numpy numbers": {"model": WEIGHTS, "best": np.float64(0.5), "n": [np.int64(3), np.bool_(1)]},
}


def equal(found: dict[str, Any]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[n], WEIGHTS[n]) for n in found)


@pytest.mark.parametrize("suffix", ["pth", "pt", "ckpt", "pkl"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_where_others_keep_them(tmp_path: Path, form: str, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    torch.save(FORMS[form], path)
    assert equal(read_weights_file(str(path))["model"])


def test_a_file_before_the_days_of_archives_is_read(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert equal(read_weights_file(str(tmp_path / "a.pth"))["model"])


def test_numbers_of_an_older_numpy_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(
        {"model": WEIGHTS, "best": np.float64(0.5)}, path, _use_new_zipfile_serialization=False
    )
    content = path.read_bytes()
    assert b"numpy._core" in content
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    assert read_weights_file(str(path))["best"] == 0.5


def test_what_lies_beside_the_weights_stays(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "iteration": 5}, tmp_path / "a.pth")
    assert read_weights_file(str(tmp_path / "a.pth"))["iteration"] == 5


def test_a_state_dict_keeps_the_version_of_its_modules(tmp_path: Path) -> None:
    """Without it a batch norm takes missing statistics for those of an old release."""
    state = nn.BatchNorm2d(2).state_dict()
    assert isinstance(state, OrderedDict)
    for content in (state, {"state_dict": state, "epoch": 1}):
        torch.save(content, tmp_path / "a.pth")
        found = read_weights_file(str(tmp_path / "a.pth"))["model"]
        assert found._metadata[""]["version"] == 2


def test_a_file_of_pycls_is_to_be_matched(tmp_path: Path) -> None:
    content = {"model_state": {**WEIGHTS, "a.num_batches_tracked": torch.ones(1)}, "epoch": 3}
    torch.save(content, tmp_path / "a.pyth")
    found = read_weights_file(str(tmp_path / "a.pyth"))
    assert equal(found["model"])
    assert found["matching_heuristics"] and found["__author__"] == "pycls"


class _Foreign:
    pass


def torchscript(path: Path) -> None:
    torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)).save(str(path))


REFUSED: dict[str, tuple[Any, str]] = {
    "foreign": (
        {"model": WEIGHTS, "log": _Foreign(), "more": Fraction(1, 3)},
        rf"holds objects of fractions\.Fraction, {__name__}\._Foreign, .*could run code; where you "
        "trust the file, load it with weights_only=False and save its state_dict alone",
    ),
    "model": (
        nn.Linear(1, 1),
        r"holds objects of .*torch\.nn\.modules\.linear\.Linear, .*run code",
    ),
    "many": (
        {"all": [_Foreign(), Fraction(1), PurePosixPath("a"), UUID(int=1), IPv4Address(1)]},
        "holds objects of [^,]+, [^,]+, [^,]+, [^,]+, and [12] more, and loading them could run",
    ),
    "list": ([torch.zeros(1)], "expected a dict of weights, found list"),
    "tensor": (torch.zeros(1), "expected a dict of weights, found Tensor"),
    "none": (
        {"epoch": 3, "args": {}},
        "holds no weights, but epoch, args; expected tensors by name",
    ),
    "nothing": ({}, "holds no weights, but nothing at all"),
    "empty model": ({"model": {}}, "holds no weights, but nothing at all"),
    "empty file": (b"", "the file is empty"),
    "text": (b"not a checkpoint", "is no file that torch.save wrote; expected a .pth file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "`git lfs pull`"),
    "page": (b"\n<!DOCTYPE html><html>", "is a web page; fetch the file itself"),
    "program": (torchscript, "is a TorchScript program; expected the state_dict"),
}


@pytest.mark.filterwarnings("ignore:.*(TorchScript|torch.jit)")
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_file_of_weights_is_refused_in_one_sentence(
    tmp_path: Path, name: str, old: bool
) -> None:
    content, message = REFUSED[name]
    path = tmp_path / "a.pth"
    if callable(content) and not isinstance(content, nn.Module):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not old)
    if old and name in ("foreign", "many"):
        # Nothing lists what an old file holds: the first that was met is named.
        message = rf"holds objects of {__name__}\._Foreign, and loading them could run code"
    with pytest.raises(WeightsFileError, match=message) as caught:
        read_weights_file(str(path))
    assert "\n" not in str(caught.value)


def save(path: Path) -> tuple[bytes, dict[str, Any]]:
    content = {"model": WEIGHTS, "iteration": 3, "state": [torch.ones(5)]}
    torch.save(content, path)
    return path.read_bytes(), content


def test_a_changed_bit_anywhere_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """What torch itself reads of an archive is more than its checksums cover, and less."""
    path = tmp_path / "a.pth"
    whole, content = save(path)
    refused = 0
    for place in range(len(whole) * 8)[::61]:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = read_weights_file(str(path))
        except WeightsFileError:
            refused += 1
            continue
        assert equal(found["model"]) and found["iteration"] == content["iteration"], place
        assert torch.equal(found["state"][0], content["state"][0]), place
    assert refused > 100


def test_a_tensor_that_is_marked_as_a_folder_is_noticed(tmp_path: Path) -> None:
    """torch would read nothing of it, and hand out the memory as it found it."""
    path = tmp_path / "a.pth"
    whole, _ = save(path)
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"a/data/0"))
    damaged = bytearray(whole)
    damaged[entry + 38] |= 0x10
    path.write_bytes(damaged)
    with pytest.raises(WeightsFileError, match="the file is damaged, a/data/0 in it"):
        read_weights_file(str(path))


def test_a_file_that_is_cut_short_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    whole, _ = save(path)
    for length in range(0, len(whole), 53):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsFileError):
            read_weights_file(str(path))


def test_a_file_written_without_checksums_is_read_and_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        save(tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with caplog.at_level(logging.WARNING):
        assert equal(read_weights_file(str(tmp_path / "a.pth"))["model"])
    assert "a.pth holds no checksums" in caplog.text


@pytest.mark.parametrize("change", [lambda content: content[:-9], lambda content: b""])
def test_a_damaged_pickle_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    content = pickle.dumps({"model": {"a": np.zeros(3)}, "__author__": "x"})
    (tmp_path / "a.pkl").write_bytes(change(content))
    with pytest.raises(WeightsFileError, match="not a pickle of numpy arrays"):
        read_weights_file(str(tmp_path / "a.pkl"))
