"""What is done to a view for the student alone, after its pixels were compared with the teacher's.

It is planned as views are: a function of seed, image and epoch, so that a resumed training sees
the same. No box moves, and the record stays that of the clean view.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from configs.nodes import StudentViewsConfig
from dataset.views import Augmentation, Step
from dataset.views.brightness import Brightness
from dataset.views.contrast import Contrast
from dataset.views.hue import Hue
from dataset.views.saturation import Saturation

from .blur import Blur
from .erasing import Erasing
from .grayscale import Grayscale

__all__ = ["student_augmentation"]

# So that equal seeds here and in VIEWS.SEED draw different numbers.
_SALT = 0x53_54_55_44_45_4E_54


def student_augmentation(cfg: CfgNode, config: StudentViewsConfig) -> Augmentation | None:
    """The steps of the node STUDENT_VIEWS, to be planned with the epoch as the view's number.

    Args:
        cfg: of the training, for its SEED.
        config: the node.

    Returns:
        None where the student sees what the teacher sees.
    """
    made: tuple[Step | None, ...] = (
        Brightness.of_range(config.brightness),
        Contrast.of_range(config.contrast),
        Saturation.of_range(config.saturation),
        Hue.of_range(config.hue),
        Grayscale(probability=config.grayscale) if config.grayscale else None,
        Blur(*config.blur) if config.blur else None,
        Erasing(*config.erasing) if config.erasing else None,
    )
    steps = tuple(step for step in made if step is not None)
    return Augmentation(seed=max(cfg.SEED, 0) ^ _SALT, steps=steps) if steps else None
