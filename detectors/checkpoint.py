"""Checkpoints: detectron2's own, read without executing anything that they hold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import Detectron2Handler
from iopath.common.file_io import get_cache_dir
from torch import nn

from configs.wording import listed
from storage.whole import replaced, write_whole

from .backbone_weights import as_backbone
from .building import build_detector
from .places import why_not_read, without_options
from .weights_file import WeightsFileError, first_line, read_weights_file

_OF_TRAINING = re.compile(r"model_(\d+)\.pth")
# What a distilling run keeps beside the detector, and a plain one has not.
METHODS = "methods"
_ANEW = "so resume it as it was begun, or start anew in another OUTPUT_DIR"


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, except that loading never runs code and never loads in part."""

    def __init__(self, model: nn.Module, *args: Any, strict: bool = False, **kwargs: Any) -> None:
        """Args: as `DetectionCheckpointer`, and

        strict: refuse weights that do not fit the whole model. Off, detectron2 warns and loads
            what fits: the way to start from an ImageNet backbone or to change the classes. That
            nothing fits is an error always.
        """
        super().__init__(model, *args, **kwargs)
        self._strict = strict
        self._resumes = False
        self._held: set[str] = set()

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As `DetectionCheckpointer`, but every error names the file.

        Raises:
            FileNotFoundError: there is no such local file.
            WeightsFileError: it is damaged, or no file of weights.
            ValueError: it does not fit.
        """
        if path and not _is_there(path):
            raise FileNotFoundError(f"{path}: there is no such file of weights")
        try:
            return super().load(path, *args, **kwargs)
        except ValueError as error:
            kind = WeightsFileError if isinstance(error, WeightsFileError) else ValueError
            raise kind(f"{path}: {error}") from error
        finally:
            # detectron2 leaves it set where loading failed, and refuses the next file then.
            self._parsed_url_during_load = None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As detectron2's; where the last checkpoint cannot be read, the one before it is named.

        Raises:
            ValueError: `last_checkpoint`, or the file that it names, is missing or damaged, or of
                another model or command.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        note = Path(self.save_dir) / "last_checkpoint"
        last = _content(note)
        self._resumes = True
        try:
            saved = self.load(str(note.parent / last)) if last else {}
        except (FileNotFoundError, WeightsFileError) as error:
            raise ValueError(f"{error}; {self._way_out(note, last)}") from error
        finally:
            self._resumes = False
        if not last:
            raise ValueError(f"{note}: names no checkpoint; {self._way_out(note, last)}")
        if "trainer" in self.checkpointables and "trainer" not in self._held:
            raise ValueError(
                f"{note.parent / last}: holds weights alone, and no state of a training to resume; "
                f"{self._way_out(note, last)}"
            )
        return saved

    def save(self, name: str, **others: Any) -> None:
        """As the base class's, but whole: a full disk or a kill would leave half of one."""
        if not (self.save_dir and self.save_to_disk):
            return
        path = Path(self.save_dir) / f"{name}.pth"
        states = {key: one.state_dict() for key, one in self.checkpointables.items()}
        self.logger.info("Saving checkpoint to %s", path)
        export_model(self.model, path, **states, **others)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As the base class's, but whole: a run killed meanwhile would find an empty note."""
        write_whole(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def _way_out(self, note: Path, last: str) -> str:
        """What to do where the file that `last_checkpoint` names is of no use."""
        number = _OF_TRAINING.fullmatch(last)
        for before in sorted(note.parent.iterdir(), reverse=True):
            found = _OF_TRAINING.fullmatch(before.name)
            if found is None or (number and int(found[1]) >= int(number[1])):
                continue
            try:
                read_weights_file(str(before))
            except (OSError, ValueError):
                continue
            return (
                f"the one before it is {before.name}: to go on from there, write this name "
                f"into {note}"
            )
        return "there is no whole one before it: start anew, without --resume"

    def _load_file(self, filename: str) -> dict[str, Any]:
        # What the base class asks `_torch_load` for can carry options in its URL.
        if filename.endswith((".pkl", ".pyth")):
            return self._torch_load(filename)
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        content = read_weights_file(f)
        self._held = set(content)
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if not (self._strict or checkpoint.get("matching_heuristics")):
            checkpoint["model"] = as_backbone(checkpoint["model"], self.model.state_dict())
        given = dict(checkpoint["model"])
        if self._resumes:
            self._require_same_command()
        incompatible = super()._load_model(checkpoint)
        shapes = {
            name: f"{name} has shape {tuple(got)}, not {tuple(want)}"
            for name, got, want in incompatible.incorrect_shapes
        }
        # fvcore counts weights of another shape as missing too.
        missing = [name for name in incompatible.missing_keys if name not in shapes]
        wanted = {name for name, _ in self.model.named_parameters()}
        if wanted and wanted <= {*missing, *shapes}:
            _refuse(
                f"none of its {len(given)} weights fits the model",
                list(shapes.values())
                or [
                    f"it holds {_names(given)}, the model {_names(wanted)}; convert the names, or "
                    "name weights that were trained with this architecture"
                ],
            )
        buffers = dict(self.model.named_buffers())
        unknown = [
            name
            for name in incompatible.unexpected_keys
            if not _is_constant(given.get(name), buffers.get(name))
        ]
        problems = [f"{name} is missing" for name in missing]
        problems += [f"{name} is unknown" for name in unknown] + list(shapes.values())
        # The optimizer's state is of the same tensors, and it does not look at their shapes.
        if self._resumes and problems:
            _refuse(f"the run to resume has another model, {_ANEW}", problems)
        if self._strict and problems:
            _refuse("weights do not fit the model", problems)
        return incompatible

    def _require_same_command(self) -> None:
        """Refuse the run of the other command, whose optimizer has other tensors.

        A checkpoint of weights alone is told apart later.
        """
        theirs, ours = METHODS in self._held, METHODS in self.checkpointables
        if theirs != ours and "trainer" in self._held:
            begun_by = {True: "stage2_distill", False: "detectors"}
            raise ValueError(
                f"the run to resume was begun by `python -m {begun_by[theirs]} train`, not by "
                f"`{begun_by[ours]} train`, {_ANEW}"
            )


def load_model(cfg: CfgNode) -> nn.Module:
    """Build a detector in evaluation mode and load `MODEL.WEIGHTS` into all of it.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be fetched from its URL.
        ValueError: no weights are named, the file is not a checkpoint, or it does not fit.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty; expected the path of a trained checkpoint")
    path = weights_path(cfg.MODEL.WEIGHTS)
    # Initial weights are drawn only to be overwritten: a student that is built next must start
    # from the same weights with and without a teacher beside it.
    with torch.random.fork_rng(devices=[]):
        model = build_detector(cfg)
    try:
        SafeCheckpointer(model, strict=True).load(path)
    except OSError as error:
        if "://" not in path:
            raise
        raise OSError(
            f"{path}: the weights could not be fetched ({first_line(error)}); check the URL, or "
            "fetch the file by other means and name its path"
        ) from error
    return model.eval()


def weights_path(name: str) -> str:
    """The local path of weights named by path or URL (fetched by detectron2's own catalog).

    Raises:
        FileNotFoundError: there is no such local file.
    """
    if not _is_there(name):
        as_url = why_not_read(name, "rename the file, or name it by a path")
        if as_url and os.path.isfile(name):
            raise FileNotFoundError(f"weights {name}: {as_url}")
        raise FileNotFoundError(
            f"weights not found: {name}; train the model first or correct the "
            "path (MODEL.WEIGHTS, or TEACHER.WEIGHTS for a teacher)"
        )
    return name


def fetched_path(url: str) -> str | None:
    """Where detectron2 keeps what it has fetched from a URL; None where it has not."""
    if url.startswith(Detectron2Handler.PREFIX):
        url = Detectron2Handler.S3_DETECTRON2_PREFIX + url.removeprefix(Detectron2Handler.PREFIX)
    path = os.path.join(get_cache_dir(), urlparse(url).path.lstrip("/"))
    return path if os.path.isfile(path) else None


def _is_there(name: str) -> bool:
    """URLs are asked for later. Behind a `?` are options for detectron2, `matching_heuristics`."""
    return "://" in name or os.path.isfile(without_options(name))


def export_model(model: nn.Module, path: Path, **others: Any) -> None:
    """Write weights, as a plain detectron2 checkpoint that any detectron2 loads, whole or not.

    `others` go beside them, such as the iteration that they are of.
    """
    with replaced(path) as partial, open(partial, "wb") as file:
        torch.save({"model": model.state_dict(), **others}, file)


def _is_constant(given: Any, buffer: torch.Tensor | None) -> bool:
    """Whether this is what the config says already, such as `pixel_mean` in older checkpoints."""
    if given is None or buffer is None:
        return False
    given = torch.as_tensor(given).to(buffer)
    return given.numel() == buffer.numel() and torch.equal(given.flatten(), buffer.flatten())


def _refuse(what: str, problems: list[str]) -> None:
    raise ValueError(f"{what}: {listed(problems, between='; ')}")


def _names(weights: Iterable[str]) -> str:
    return listed(sorted(weights), shown=3)


def _content(note: Path) -> str:
    try:
        return note.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
