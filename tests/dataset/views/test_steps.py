"""Steps of the user's own: registered by name, asked for by VIEWS.STEPS, drawn independently."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.imports import import_modules
from configs.nodes import ViewsConfig
from dataset.pixels import ImageError
from dataset.views import Augmentation, Step, plan_view, plan_views, register_step, render
from dataset.views.registry import OUR_STEPS, STEPS
from tests.dataset.conftest import pattern

CONFIG = ViewsConfig(seed=0, scales=(64, 80, 96), max_size=160, flip=0.5)
# A module of the user's: most views lose some rows at their top.
MODULE = """
from dataclasses import dataclass

import numpy as np
from detectron2.data.transforms import CropTransform

from dataset.views import Step, register_step


@register_step
@dataclass(frozen=True)
class Lower(Step):
    name = "lower"
    version = 3
    draws = (1001,)

    most: int = 9

    def draw(self, seeds, sizes):
        return self.choose(seeds, self.most + 1)

    def sizes_after(self, outcomes, sizes):
        return sizes - np.stack([outcomes, np.zeros_like(outcomes)], axis=1)

    def transforms(self, outcome, size):
        height, width = size
        return [CropTransform(0, outcome, width, height - outcome, width, height)]
"""


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    yield
    for name in set(STEPS) - set(OUR_STEPS):
        del STEPS[name]


@pytest.fixture
def lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ViewsConfig:
    """A config with the step of the user's module."""
    name = f"my_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import_modules([name])
    return replace(CONFIG, steps=("lower",))


@dataclass(frozen=True)
class Nothing(Step):
    """Changes no pixel; the tests derive from it."""

    name = "nothing"

    def draw(self, seeds: Any, sizes: Any) -> Any:
        return np.zeros(len(seeds))

    def transforms(self, outcome: Any, size: Any) -> Any:
        return []


def plan(config: ViewsConfig, number: int = 3000) -> Any:
    sides = np.full(number, 200)
    augmentation = Augmentation.of_config(config)
    return plan_views(
        augmentation, image_ids=np.arange(number), view=0, heights=sides, widths=sides
    )


def test_a_step_of_the_user_s_draws_independently_of_the_others(lowered: ViewsConfig) -> None:
    without, views = plan(CONFIG), plan(lowered)
    for name in ("resize", "flip"):
        assert np.array_equal(without.outcomes[name], views.outcomes[name])
    rows = views.outcomes["lower"]
    assert set(rows) == set(range(10))
    assert np.array_equal(views.height, without.height - rows)
    flipped = views.outcomes["flip"]
    assert abs(rows[flipped].mean() - rows[~flipped].mean()) < 0.5
    for scale in CONFIG.scales:
        assert abs(rows[without.height == scale].mean() - 4.5) < 0.5


def test_it_is_in_the_fingerprint_which_gives_it_back(lowered: ViewsConfig) -> None:
    augmentation = Augmentation.of_config(lowered)
    fingerprint = augmentation.fingerprint
    expected = {"name": "lower", "version": 3, "parameters": {"most": 9}}
    assert fingerprint["steps"] == [*Augmentation.of_config(CONFIG).fingerprint["steps"], expected]
    assert Augmentation.of_fingerprint(fingerprint) == augmentation
    assert augmentation.largest_size == (96, 160)


def test_pixels_and_boxes_follow_it_and_come_back(lowered: ViewsConfig, tmp_path: Path) -> None:
    Image.fromarray(pattern(80, 60)).save(tmp_path / "image.png")
    config = replace(lowered, scales=(60,), flip=1.0)
    augmentation = Augmentation.of_config(config)
    view = plan_view(augmentation, image_id=1, view=0, height=80, width=60)
    rows = view.steps[2][1]
    assert rows > 0
    rendered = render(tmp_path / "image.png", view)
    assert (rendered.pixels == pattern(80, 60)[rows:, ::-1]).all()
    box = np.array([[10.0, 20.0, 40.0, 70.0]])
    moved = rendered.transforms.apply_box(box)
    assert moved.tolist() == [[20, 20 - rows, 50, 70 - rows]]
    assert view.transforms().inverse().apply_box(moved).tolist() == box.tolist()


@pytest.mark.parametrize("steps", [("lwoer",), ("flip",), ("lower", "lower")])
def test_a_config_names_registered_steps_once(lowered: ViewsConfig, steps: tuple[str, ...]) -> None:
    message = rf"VIEWS\.STEPS: expected .* \(registered: lower; IMPORTS .*\), got '{steps[0]}'"
    with pytest.raises(ValueError, match=message):
        Augmentation.of_config(replace(CONFIG, steps=steps))


@pytest.mark.parametrize("name", ["flip", "nothing"])
def test_a_name_registered_twice_is_refused(name: str) -> None:
    register_step(Nothing)
    Other = dataclass(frozen=True)(type("Other", (Nothing,), {"name": name}))
    with pytest.raises(ValueError, match=rf"step '{name}' \(.*Other\): the name is taken by .*\."):
        register_step(Other)
    assert STEPS["nothing"] is Nothing


@pytest.mark.parametrize(
    ("number", "whose"),
    [(1, "dataset.views.resize.Resize"), (999, "the project"), (1000, ".*Nothing")],
)
def test_a_draw_number_of_another_step_is_refused(
    number: int, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Nothing, "draws", (1000,))
    register_step(Nothing)
    members = {"name": "other", "draws": (1001, number)}
    Other = dataclass(frozen=True)(type("Other", (Nothing,), members))
    with pytest.raises(ValueError, match=f"draw number {number} belongs to {whose}; choose"):
        register_step(Other)


def test_a_class_whose_fields_would_not_be_in_the_fingerprint_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step 'other' \(.*\): expected a dataclass; decorate"):
        register_step(type("Other", (Nothing,), {"name": "other"}))


def test_fields_that_are_no_json_are_refused() -> None:
    step = dataclass(frozen=True)(
        type("Other", (Nothing,), {"__annotations__": {"share": Any}, "share": np.float32(0.5)})
    )()
    with pytest.raises(
        ValueError, match=r"step nothing: its fields must be JSON values: .*float32"
    ):
        _ = step.fingerprint


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("draw", lambda self, seeds, sizes: np.zeros(1), r"expected 3 outcomes .*, got \(1,\)"),
        ("sizes_after", lambda self, outcomes, sizes: sizes[:, 0], r"shape \(3, 2\), .*\(3,\)"),
        ("sizes_after", lambda self, outcomes, sizes: sizes * 0.5, r"whole sizes .* float64 of"),
        (
            "sizes_after",
            lambda self, outcomes, sizes: sizes * 0,
            "would shrink its .*; leave the image out by DATASET.IMAGE_LIST",
        ),
        (
            "sizes_after",
            lambda self, outcomes, sizes: sizes + 8,
            r"`largest_size` gives \((\d+), \1\) for \(\1, \1\), .* comes to \(",
        ),
        ("draw", lambda self, seeds, sizes: self.uniform(seeds), r"`draws` has no number 0, it is"),
        (
            "draw",
            lambda self, seeds, sizes: self.choose(seeds, 2, which=1),
            r"`draws` has no number 1, it is \(\); add one",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_names_its_step(method: str, given: Any, message: str) -> None:
    register_step(dataclass(frozen=True)(type("Other", (Nothing,), {method: given})))
    with pytest.raises(ValueError, match=f"step nothing.*{message}"):
        plan(replace(CONFIG, steps=("nothing",)), 3)


def fail(self: Any, *given: Any) -> Any:
    (one,) = ()
    return one


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(pattern(80, 60)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def rendered_with(image: Path, **members: Any) -> None:
    """Render a view with a step that has these methods."""
    register_step(dataclass(frozen=True)(type("Other", (Nothing,), members)))
    augmentation = Augmentation.of_config(replace(CONFIG, steps=("nothing",)))
    render(image, plan_view(augmentation, image_id=1, view=0, height=80, width=60))


@pytest.mark.parametrize("method", ["draw", "sizes_after", "transforms", "pixels"])
def test_a_step_that_fails_is_named_with_the_line_and_not_the_image(
    image: Path, method: str
) -> None:
    from detectron2.data.transforms import ColorTransform

    members = {method: fail}
    if method == "pixels":
        members = {"transforms": lambda self, outcome, size: [ColorTransform(fail)]}
    line = fail.__code__.co_firstlineno + 1
    said = f"^step nothing: ValueError: not enough values .* \\({__file__}:{line}\\)$"
    with pytest.raises(ValueError, match=said) as caught:
        rendered_with(image, **members)
    assert not isinstance(caught.value, ImageError)


def test_what_a_machine_lacks_is_no_fault_of_a_step(image: Path) -> None:
    def lacking(*given: Any) -> Any:
        raise MemoryError

    with pytest.raises(MemoryError):
        rendered_with(image, transforms=lacking)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda pixels: pixels * 0.5, r"float64 of \(\d+, \d+, 3\)"),
        (lambda pixels: pixels[:, :, :1], r"uint8 of \(\d+, \d+, 1\)"),
        (lambda pixels: pixels[1:], r"uint8 of \(\d+, \d+, 3\)"),
        (lambda pixels: None, "NoneType"),
    ],
)
def test_pixels_of_another_kind_than_planned_are_refused(
    image: Path, change: Any, got: str
) -> None:
    from detectron2.data.transforms import ColorTransform

    done = [ColorTransform(change)]
    with pytest.raises(ValueError, match=rf"^step nothing: expected uint8 pixels .* got {got}$"):
        rendered_with(image, transforms=lambda self, outcome, size: done)
