"""Detectors as detectron2 builds them, and what distillation needs to know of each family."""

import warnings

# detectron2's own, at import and at its first anchors; nothing that a user could act on.
warnings.filterwarnings("ignore", message=".*(torch.jit.script|torch.meshgrid)")

from .checkpoint import SafeCheckpointer, export_model, load_model, weights_path  # noqa: E402
from .family import DetectorFamily, family_of  # noqa: E402
from .fingerprint import config_fingerprint, teacher_fingerprint  # noqa: E402
from .images import to_model_image, training_images  # noqa: E402
from .outputs import DenseOutputs  # noqa: E402

__all__ = [
    "DenseOutputs",
    "DetectorFamily",
    "SafeCheckpointer",
    "config_fingerprint",
    "export_model",
    "family_of",
    "load_model",
    "teacher_fingerprint",
    "to_model_image",
    "training_images",
    "weights_path",
]
