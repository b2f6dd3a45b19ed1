"""VIEWS.PLAIN: some views have neither crop nor colours, and everything else as before."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from configs.nodes import ViewsConfig
from dataset.views import Augmentation, plan_view
from dataset.views.flip import Flip

CONFIG = ViewsConfig(
    num=4, scales=(64, 80), max_size=160, fixed_size=(70, 90), flip=0.5,
    crop=("relative", 0.5, 0.5), brightness=(0.5, 2.0), hue=(-0.1, 0.1), plain=(3, 1),
)  # fmt: skip
AUGMENTATION = Augmentation.of_config(CONFIG)
KEPT = ["resize", "fixed_size", "flip"]


@pytest.mark.parametrize("number", range(5))
def test_plain_views_lack_crop_and_colours_alone(number: int) -> None:
    view = plan_view(AUGMENTATION, image_id=3, view=number, height=200, width=200)
    names = [step.name for step, _ in view.steps]
    is_plain = number in (1, 3)
    assert names == (KEPT if is_plain else ["crop", "resize", "brightness", "hue", *KEPT[1:]])
    all_plain = Augmentation.of_config(
        replace(CONFIG, crop=(), brightness=(1.0, 1.0), hue=(0.0, 0.0), plain=())
    )
    expected = plan_view(all_plain, image_id=3, view=number, height=200, width=200)
    assert (view == expected) == is_plain
    assert AUGMENTATION.cuts(number)  # by its fixed size
    without = Augmentation.of_config(replace(CONFIG, fixed_size=()))
    assert without.cuts(number) != is_plain


def test_a_fingerprint_names_plain_views_where_there_are_some() -> None:
    assert AUGMENTATION.fingerprint["plain"] == [1, 3]
    assert Augmentation.of_fingerprint(AUGMENTATION.fingerprint) == AUGMENTATION
    assert Augmentation.of_config(replace(CONFIG, plain=(1, 3))) == AUGMENTATION
    assert "plain" not in Augmentation.of_config(replace(CONFIG, plain=())).fingerprint


def test_plain_views_that_would_be_like_the_others_are_refused() -> None:
    config = ViewsConfig(scales=(64,), max_size=160, plain=(0,))
    with pytest.raises(ValueError, match=r"VIEWS\.PLAIN: expected \(\) where no view .*\(0,\)"):
        Augmentation.of_config(config)


def test_the_largest_size_is_that_of_plain_views_too() -> None:
    @dataclass(frozen=True)
    class Half(Flip):
        in_plain: ClassVar[bool] = False

        def largest_size(self, largest: tuple[int, int]) -> tuple[int, int]:
            short, long = (side // 2 for side in largest)
            return short, long

    halved = Half(probability=1.0)
    usual = Augmentation(seed=0, steps=(*AUGMENTATION.steps[1:2], halved))
    assert np.array_equal(usual.largest_size, (40, 80))
    assert replace(usual, plain=(0,)).largest_size == (80, 160)
