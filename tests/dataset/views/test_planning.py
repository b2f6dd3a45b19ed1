"""Deterministic views: the hash and the plan."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from detectron2.data.transforms import ResizeShortestEdge
from hypothesis import given
from hypothesis import strategies as st

from configs.nodes import ViewsConfig
from dataset.views import Augmentation, ViewArrays, plan_view, plan_views
from dataset.views.seeds import view_seeds

CONFIG = ViewsConfig(seed=0, scales=(64, 80, 96), max_size=160, flip=0.5)
AUGMENTATION = Augmentation.of_config(CONFIG)

# Worked out from the module's text by other code. Every cache was written with these numbers: do
# not change them, add a hash version.
GOLDEN_SEEDS = {
    (0, 0, 0): 2558736989570252433,
    (0, 139, 0): 16905928804057917263,
    (0, 139, 1): 10773375345419966615,
    (7, 581929, 3): 8466639534113027496,
    (2**63 - 1, 2**63 - 1, 2**31): 9346569215803548106,
    (1, -1, 0): 5967011716909498425,
}
# (image id, view): (flip, height, width) of a 60x100 image under CONFIG.
GOLDEN_VIEWS = {
    (0, 0): (True, 64, 107),
    (139, 0): (False, 80, 133),
    (139, 1): (True, 96, 160),
}
MASK, GOLDEN_RATIO = 2**64 - 1, 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    """The module's text once more, in Python's integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def expected_view(
    config: ViewsConfig, image_id: int, view: int, height: int, width: int
) -> tuple[int, bool, tuple[int, int]]:
    """Seed, flip and size by the text, one image at a time, with detectron2's rounding."""
    seed = 0
    for part in (config.seed, image_id, view):
        seed = mix(((seed ^ (part & MASK)) + GOLDEN_RATIO) & MASK)
    first, second = (mix((seed + number * GOLDEN_RATIO) & MASK) for number in (1, 2))
    scale = config.scales[((first >> 32) * len(config.scales)) >> 32]
    size = ResizeShortestEdge.get_output_shape(height, width, scale, config.max_size)
    return seed, (second >> 11) / 2**53 < config.flip, size


def plan_of_config(config: ViewsConfig, number: int, side: int, view: int = 0) -> ViewArrays:
    """Plan images 0 to `number` - 1, all `side` x `side` pixels."""
    sides = np.full(number, side)
    return plan_views(
        Augmentation.of_config(config),
        image_ids=np.arange(number), view=view, heights=sides, widths=sides,
    )  # fmt: skip


@pytest.mark.parametrize(("key", "seed"), GOLDEN_SEEDS.items())
def test_seeds_are_the_ones_of_hash_version_1(key: tuple[int, int, int], seed: int) -> None:
    assert view_seeds(key[0], [key[1]], key[2]).tolist() == [seed]


@pytest.mark.parametrize(("key", "expected"), GOLDEN_VIEWS.items())
def test_plans_are_the_ones_of_hash_version_1(
    key: tuple[int, int], expected: tuple[bool, int, int]
) -> None:
    view = plan_view(AUGMENTATION, image_id=key[0], view=key[1], height=60, width=100)
    resize, flip = (outcome for _, outcome in view.steps)
    assert (flip, view.height, view.width) == expected
    assert tuple(resize) == expected[1:]
    assert view.seed == GOLDEN_SEEDS[(0, *key)]
    assert view.sizes == ((60, 100), expected[1:], expected[1:])


@given(
    seed=st.integers(0, 2**63 - 1),
    view=st.integers(0, 2**31 - 1),
    scales=st.lists(st.integers(1, 1333), min_size=1, max_size=7),
    spare=st.integers(0, 700),
    flip=st.floats(0, 1, exclude_min=True),
    images=st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(64, 5000), st.integers(64, 5000)),
        min_size=1,
        max_size=20,
    ),
)
def test_views_are_those_of_the_text_and_of_detectron2(
    seed: int,
    view: int,
    scales: list[int],
    spare: int,
    flip: float,
    images: list[tuple[int, int, int]],
) -> None:
    # A longest edge of 80 or more leaves at least one pixel of a 64x5000 image.
    largest = max(80, *scales) + spare
    config = ViewsConfig(seed=seed, scales=tuple(scales), max_size=largest, flip=flip)
    augmentation = Augmentation.of_config(config)
    ids, heights, widths = zip(*images, strict=True)
    many = plan_views(augmentation, image_ids=ids, view=view, heights=heights, widths=widths)
    assert len(many) == len(images)
    for one, (image_id, height, width) in zip(many, images, strict=True):
        expected = expected_view(config, image_id, view, height, width)
        assert (one.seed, one.steps[1][1], one.sizes[-1]) == expected
        assert all(np.array(sorted(one.sizes[-1])) <= augmentation.largest_size)
    assert many[0] == plan_view(
        augmentation, image_id=ids[0], view=view, height=heights[0], width=widths[0]
    )


def test_scales_are_uniform_and_flips_at_their_rate_and_independent() -> None:
    number = 60_000
    views = plan_of_config(replace(CONFIG, flip=0.3), number, 200)
    for scale in CONFIG.scales:
        chosen = views.height == scale
        # Five standard deviations of a fair draw.
        assert abs(chosen.mean() - 1 / 3) < 5 * np.sqrt(2 / 9 / number)
        flipped = views.outcomes["flip"][chosen]
        assert abs(flipped.mean() - 0.3) < 5 * np.sqrt(0.21 / chosen.sum())
    assert len(np.unique(views.seed)) == number


def test_views_of_an_image_are_drawn_anew() -> None:
    first, second = (plan_of_config(CONFIG, 2000, 200, view) for view in (0, 1))
    assert abs((first.height == second.height).mean() - 1 / 3) < 0.06
    flips = first.outcomes["flip"], second.outcomes["flip"]
    assert abs((flips[0] == flips[1]).mean() - 1 / 2) < 0.06


def test_flip_of_1_always_flips_and_of_0_is_no_step() -> None:
    assert plan_of_config(replace(CONFIG, flip=1.0), 5000, 64).outcomes["flip"].all()
    assert "flip" not in plan_of_config(replace(CONFIG, flip=0.0), 1, 64).outcomes


def test_the_flip_setting_does_not_move_the_scales() -> None:
    plans = [plan_of_config(replace(CONFIG, flip=flip), 100, 64) for flip in (0.0, 0.1, 0.9)]
    assert (plans[0].height == plans[1].height).all()
    assert (plans[1].height == plans[2].height).all()


@pytest.mark.parametrize("size", [(0, 10), (10, -1)])
def test_plan_refuses_a_size_without_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"image 5: .* must be positive, got {size[0]}x{size[1]}"):
        plan_views(
            AUGMENTATION, image_ids=[4, 5], view=0, heights=[9, size[0]], widths=[9, size[1]]
        )


def test_plan_refuses_an_image_that_would_shrink_to_nothing() -> None:
    message = "image 5: the step resize would shrink its 1x5000 pixels .*; raise VIEWS.MAX_SIZE"
    with pytest.raises(ValueError, match=message):
        plan_views(AUGMENTATION, image_ids=[4, 5], view=0, heights=[9, 1], widths=[9, 5000])


def test_plan_refuses_lists_of_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"one length, got shapes \(2,\), \(1,\) and \(2,\)"):
        plan_views(AUGMENTATION, image_ids=[1, 2], view=0, heights=[9], widths=[9, 9])


def test_fingerprint_names_every_step_and_leaves_out_the_number_of_views() -> None:
    assert AUGMENTATION.fingerprint == {
        "seed": 0,
        "hash": {"name": "splitmix64-chain", "version": 1},
        "steps": [
            {
                "name": "resize",
                "version": 1,
                "parameters": {"scales": [64, 80, 96], "max_size": 160},
            },
            {"name": "flip", "version": 1, "parameters": {"probability": 0.5}},
        ],
    }
    assert Augmentation.of_config(replace(CONFIG, num=4)) == AUGMENTATION


def test_a_fingerprint_gives_the_augmentation_back() -> None:
    assert Augmentation.of_fingerprint(AUGMENTATION.fingerprint) == AUGMENTATION


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("hash", {"version": 2}, "views have the hash .*'version': 2}, not .*'version': 1}"),
        ("step", {"name": "blur"}, r"a step 'blur', which is not registered \(registered: crop"),
        ("step", {"version": 2}, "version 2 of the step 'flip', here it has version 1"),
        ("step", {"parameters": {"share": 1}}, "'flip' with the parameters {'share': 1}, which"),
    ],
)
def test_a_fingerprint_of_other_code_is_refused(
    part: str, change: dict[str, Any], message: str
) -> None:
    stored = AUGMENTATION.fingerprint
    changed = stored["steps"][1] if part == "step" else stored["hash"]
    stored = {**stored, part: {**changed, **change}}
    if part == "step":
        stored["steps"] = [stored["steps"][0], stored.pop("step")]
    with pytest.raises(ValueError, match=message):
        Augmentation.of_fingerprint(stored)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"scales": (80, 64, 96)}, {"max_size": 161}, {"flip": 0.4}]
)
def test_fingerprint_tells_augmentations_apart(change: dict[str, Any]) -> None:
    assert Augmentation.of_config(replace(CONFIG, **change)).fingerprint != AUGMENTATION.fingerprint
