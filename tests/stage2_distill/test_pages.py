"""Pages: readable wide and narrow, in the light and in the dark; drawings have texts."""

import re
from pathlib import Path

from stage2_distill.pages import curves, picture, table, write_page


def test_a_page_fits_narrow_screens_and_dark_ones(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "t", [table(["a"], [["b"]]), picture(b"png", 'a "cat"')])
    page = (tmp_path / "page.html").read_text()
    assert '<meta name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page
    # Both scroll, the page does not.
    assert '<div class="wide"><table>' in page and '<p class="wide"><img ' in page
    assert 'alt="a &quot;cat&quot;"' in page


def test_curves_take_the_colour_of_the_text_and_say_how_they_end() -> None:
    drawn = curves({"<loss> $1": {"<a>": [(1, 2.0), (2, 0.25)], "b": [(2, 7.0)]}})
    assert 'aria-label="&lt;loss&gt; $1 over iterations; at the end: &lt;a&gt; 0.25, b 7"' in drawn
    assert "stroke: currentColor" in drawn and "fill: currentColor" in drawn
    assert "#000000" not in drawn and "<a>" not in drawn and "<loss>" not in drawn


def test_a_label_has_one_line_in_all_panels_and_no_other_label_has_it() -> None:
    labels = [f"row {number}" for number in range(20)]
    curve = [(1, 2.0), (2, 1.0)]
    drawn = curves({"one": dict.fromkeys(labels, curve), "two": {labels[19]: curve}})
    lines = re.findall(r'<i style="([^"]+)"></i>(row [0-9]+)', drawn)
    assert len(set(lines)) == len({style for style, _ in lines}) == 20
    assert lines[-1] == lines[-2]
