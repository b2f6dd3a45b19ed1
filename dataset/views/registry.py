"""The steps by name: ours, and those that modules of the user's register."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from configs.wording import full_name

from .base import Step
from .brightness import Brightness
from .contrast import Contrast
from .crop import Crop
from .fixed_size import FixedSize
from .flip import Flip
from .flip_vertical import FlipVertical
from .hue import Hue
from .resize import Resize
from .resize_scale import ResizeScale
from .saturation import Saturation

if TYPE_CHECKING:
    from configs.nodes import ViewsConfig

# Draw numbers below belong to steps of ours, those to come included.
FIRST_OWN_DRAW = 1000

# In the order in which they are applied; those of the user's follow, as VIEWS.STEPS lists them.
# Colours change before padding, which stays grey.
_IN_ORDER: tuple[type[Step], ...] = (
    Crop, Resize, ResizeScale, Brightness, Contrast, Saturation, Hue, FixedSize, Flip, FlipVertical,
)  # fmt: skip
OUR_STEPS: dict[str, type[Step]] = {step.name: step for step in _IN_ORDER}
STEPS = dict(OUR_STEPS)

StepClass = TypeVar("StepClass", bound=type[Step])


def register_step(step: StepClass) -> StepClass:
    """Make a step of the user's known by its name, for `VIEWS.STEPS`; a class decorator.

    Raises:
        ValueError: it is no dataclass, or has the name or a draw number of another step.
    """
    label = f"step {step.name!r} ({full_name(step)})"
    # Without the decorator, fields of the class would be missing in the fingerprint.
    if "__dataclass_fields__" not in vars(step):
        raise ValueError(f"{label}: expected a dataclass; decorate it with @dataclass(frozen=True)")
    if step.name in STEPS:
        owner = full_name(STEPS[step.name])
        raise ValueError(f"{label}: the name is taken by {owner}; choose another")
    taken = {number: other for other in STEPS.values() for number in other.draws}
    for number in step.draws:
        if number < FIRST_OWN_DRAW or number in taken:
            whose = full_name(taken[number]) if number in taken else "the project"
            raise ValueError(
                f"{label}: draw number {number} belongs to {whose}; choose another, of "
                f"{FIRST_OWN_DRAW} or more"
            )
    STEPS[step.name] = step
    return step


def steps_of_config(config: ViewsConfig) -> tuple[Step, ...]:
    """The steps of a view, in the order in which they are applied.

    Raises:
        ValueError: `VIEWS.STEPS` names a step that is not registered, or one twice.
    """
    own = [name for name in STEPS if name not in OUR_STEPS]
    for name in config.steps:
        if name not in own or config.steps.count(name) > 1:
            raise ValueError(
                "VIEWS.STEPS: expected registered steps of yours, each at most once (registered: "
                f"{', '.join(own) or 'none'}; IMPORTS names the modules that register them), got "
                f"{name!r} in {config.steps}"
            )
    made = [STEPS[name].from_config(config) for name in (*OUR_STEPS, *config.steps)]
    return tuple(step for step in made if step is not None)


def step_of_fingerprint(fingerprint: Mapping[str, Any]) -> Step:
    """The step that a cache was made with.

    Raises:
        ValueError: it is not registered, or has another version or other parameters by now.
    """
    name, version = fingerprint["name"], fingerprint["version"]
    if name not in STEPS:
        raise ValueError(
            f"the cache's views have a step {name!r}, which is not registered (registered: "
            f"{', '.join(STEPS)}); name the module that does it by --import"
        )
    if STEPS[name].version != version:
        raise ValueError(
            f"the cache's views have version {version} of the step {name!r}, here it has version "
            f"{STEPS[name].version}; use the code that the cache was dumped with"
        )
    parameters = fingerprint["parameters"]
    try:
        # JSON has no tuples, and frozen fields no lists.
        return STEPS[name](
            **{key: tuple(one) if isinstance(one, list) else one for key, one in parameters.items()}
        )
    except TypeError as error:
        raise ValueError(
            f"the cache's views have a step {name!r} with the parameters {parameters}, which it "
            f"does not take here ({error}); use the code that the cache was dumped with"
        ) from None
