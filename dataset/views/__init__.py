"""Deterministic views: the steps that make a view of an image, and the pixels that follow.

A view depends only on the augmentation, the image's id and size, and the view's number, never on
the worker, the rank, the order or a global random state. Stage 1 and Stage 2 plan and render by the
same functions, and so see the same pixels.

    seeds      a view's seed, and the numbers drawn from it
    base       what a step is
    registry   the steps by name, those of the user's among them; ours have a file each
    planning   every step's draws and the sizes of many views
    rendering  the pixels of one view
    objects    the ground truth of one view

Importing this takes no detectron2; planning does not either.
"""

from .base import Step
from .planning import Augmentation, View, ViewArrays, plan_view, plan_views
from .registry import register_step
from .rendering import RenderedView, render

__all__ = [
    "Augmentation",
    "RenderedView",
    "Step",
    "View",
    "ViewArrays",
    "plan_view",
    "plan_views",
    "register_step",
    "render",
]
