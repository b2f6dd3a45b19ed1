"""Detectors as detectron2 builds them, and what distillation needs to know of each family."""

from .checkpoint import SafeCheckpointer, export_model, load_model, weights_path
from .family import DetectorFamily, family_of
from .fingerprint import config_fingerprint, teacher_fingerprint
from .images import to_model_image
from .outputs import DenseOutputs

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
    "weights_path",
]
