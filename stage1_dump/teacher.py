"""The teacher at work: a batch of views in, the codes of their records out, all on its device.

Shape letters: N images of a batch, H, W their padded size, D detections kept an image, C channels,
S positions of all levels, R anchors an image, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detectors import DenseOutputs, load_model
from detectors.arithmetic import arithmetic
from detectors.stored import Stored
from storage import Geometry, RecordCodec


class DumpError(OSError):
    """This machine cannot go on with the dump; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A loaded teacher and how its outputs are encoded.

    Attributes:
        model: the detector, in evaluation mode on its device.
        stored: what is kept of its outputs, with its config and family.
        precision: arithmetic of its forward, as in `TEACHER.PRECISION`.
        codec: of the records.
    """

    model: nn.Module
    stored: Stored
    precision: str
    codec: RecordCodec

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def run(self, images: list[Tensor]) -> DenseOutputs:
        """Normalise, pad and run, at the configured precision.

        Args:
            images: N views on the device, each (3, h, w) uint8 in `INPUT.FORMAT`, of one padded
                size.

        Returns:
            Outputs in float32.
        """
        with arithmetic(self.precision, self.device):
            outputs = self.stored.family.run(self.model, [{"image": image} for image in images])
        return outputs.float()

    @torch.inference_mode()
    def encode(self, outputs: DenseOutputs, geometry: Geometry) -> dict[str, Tensor]:
        """Encode what the teacher says of one batch.

        Args:
            outputs: of N views; not modified.
            geometry: the array sizes of their bucket.

        Returns:
            The codecs' fields and `detections`, each with leading dimension N, on the device.

        Raises:
            ValueError: the outputs are not finite, or not of the sizes that the config announced.
        """
        self._check_levels(outputs, geometry)
        codes = self.codec.encode(self.stored.values(outputs), geometry)
        rows = self.stored.cfg.TEST.DETECTIONS_PER_IMAGE
        return {**codes, "detections": self.stored.family.detections(self.model, outputs, rows)}

    @torch.inference_mode()
    def prove(self, outputs: DenseOutputs, codes: dict[str, Tensor], geometry: Geometry) -> None:
        """Look whether what `encode` gave of a batch can be made again and read.

        Raises:
            ValueError: names the codec.
        """
        self.codec.prove(self.stored.values(outputs), codes, geometry)

    def _check_levels(self, outputs: DenseOutputs, geometry: Geometry) -> None:
        """Refuse a backbone, most likely of the user's, whose strides are not those it states."""
        sizes = outputs.level_sizes
        levels = zip(self.stored.levels.items(), self.stored.kept, strict=True)
        for ((name, stride), number), wanted in zip(levels, geometry.level_sizes, strict=True):
            if sizes[number] != wanted:
                found, expected = ("x".join(map(str, one)) for one in (sizes[number], wanted))
                raise ValueError(
                    f"teacher's level {name}: got {found} positions on a view padded to "
                    f"{geometry.height}x{geometry.width}, expected {expected} by its stride of "
                    f"{stride} px; mend the stride in the `output_shape` of its backbone"
                )


def load_teacher(
    stored: Stored, device: torch.device, *, precision: str, codec: RecordCodec
) -> Teacher:
    """Build a teacher and load its weights.

    Args:
        stored: of the teacher, whose config's device is set.
        device: where the model goes.
        precision, codec: see `Teacher`.

    Raises:
        ValueError, FileNotFoundError: the weights do not fit, or are missing.
    """
    stored.cfg.MODEL.DEVICE = str(device)
    return Teacher(model=load_model(stored.cfg), stored=stored, precision=precision, codec=codec)


@contextmanager
def naming_the_batch(num_images: int, geometry: Geometry) -> Iterator[None]:
    """Say what to lower when the GPU runs out of memory.

    Raises:
        DumpError: the GPU is out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        # Never retried with fewer images: the batch size moves the last bits of the outputs.
        raise DumpError(
            f"the GPU is out of memory with {num_images} views of {geometry.height}x"
            f"{geometry.width} pixels at once; lower TEACHER.BATCH (it is part of a cache's "
            "identity: begin a new CACHE.LOCATION)"
        ) from error
