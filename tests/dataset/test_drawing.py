"""Pictures with boxes: labels inside the picture and beside each other, a legend of the kinds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dataset.drawing import BLUE, YELLOW, BoxGroup, Panel, draw_panels


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What is drawn, before it is saved."""
    found: list[Figure] = []
    savefig = Figure.savefig

    def note(figure: Figure, *args: Any, **options: Any) -> None:
        found.append(figure)
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", note)
    return found


def panel(boxes: list[list[float]], *, kind: str = "GI", colour: str = BLUE) -> Panel:
    """Of 60 x 90 pixels; its labels are numbers and a word."""
    group = BoxGroup(
        kind=kind,
        boxes=np.array(boxes, dtype=float),
        labels=[f"{number} semi-positive" for number in range(len(boxes))],
        colour=colour,
    )
    return Panel(title="t", pixels=np.zeros((60, 90, 3), np.uint8), groups=[group])


def extents(axes: Axes) -> np.ndarray:
    """(n, 4) pixels of the labels with the ground that they stand on."""
    axes.figure.canvas.draw()
    return np.array([one.get_bbox_patch().get_window_extent().extents for one in axes.texts])


def test_labels_stay_in_the_picture_and_beside_each_other(
    figures: list[Figure], tmp_path: Path
) -> None:
    # At each corner, and five times the same box.
    corners = [[0, 0, 9, 9], [80, 0, 90, 9], [0, 50, 9, 60], [80, 50, 90, 60]]
    draw_panels(tmp_path / "p.png", [panel(corners + [[30, 20, 60, 50]] * 5)], columns=1)
    (axes,) = figures[0].axes
    found = extents(axes)
    picture = axes.get_window_extent().extents
    assert len(found) == 9
    assert (found[:, :2] >= picture[:2] - 1).all() and (found[:, 2:] <= picture[2:] + 1).all()
    shared = np.minimum(found[:, None, 2:], found[:, 2:]) - np.maximum(
        found[:, None, :2], found[:, :2]
    )
    area = np.clip(shared - 1, 0, None).prod(axis=2)
    assert not area[~np.eye(9, dtype=bool)].any()


def test_a_legend_names_the_kinds_where_there_are_several(
    figures: list[Figure], tmp_path: Path
) -> None:
    one, other = panel([[0, 0, 9, 9]]), panel([], kind="teacher", colour=YELLOW)
    draw_panels(tmp_path / "one.png", [one, one], columns=2)
    draw_panels(tmp_path / "two.png", [one, other, one], columns=2)
    assert figures[0].legends == []
    assert [text.get_text() for text in figures[1].legends[0].get_texts()] == ["GI", "teacher"]


def test_letters_and_lines_grow_with_the_picture(figures: list[Figure], tmp_path: Path) -> None:
    large = np.zeros((600, 900, 3), np.uint8)
    for pixels, columns in ((large, 1), (large, 8)):
        shown = Panel(title="t", pixels=pixels, groups=panel([[0, 0, 9, 9]]).groups)
        draw_panels(tmp_path / "p.png", [shown] * columns, columns=columns)
    wide, narrow = (one.axes[0] for one in figures)
    assert wide.texts[0].get_fontsize() > narrow.texts[0].get_fontsize() > 6
    assert wide.patches[0].get_linewidth() > narrow.patches[0].get_linewidth()


def test_a_picture_is_written_where_it_was_asked_for_and_nowhere_else(tmp_path: Path) -> None:
    draw_panels(tmp_path / "sheet", [panel([[0, 0, 9, 9]])], columns=1)
    assert (tmp_path / "sheet").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        draw_panels(tmp_path / "folder", [panel([[0, 0, 9, 9]])], columns=1)
    assert {one.name for one in tmp_path.iterdir()} == {"sheet", "folder"}
