"""Whether the libraries of this machine give the same pixels of views as those of others did.

The checksums that came out elsewhere are in `benchmarks/results/views.json`; each view that comes
out otherwise is named.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from storage.example import add_example

# Two JPEG files as cameras and web pages have them, 320x240: what is decoded, not what encodes.
IMAGES = Path(__file__).parent / "images"
EXPECTED = Path(__file__).parent / "results" / "views.json"
# Views of each image and config.
VIEWS = 4
# Height and width of the other images: both ways round, and small beside large.
SIZES = ((480, 640), (640, 427), (97, 31))
# What decodes, resizes and changes pixels.
LIBRARIES = ("pillow", "numpy")
COLOURS: dict[str, Any] = {
    "brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.6, 1.4), "hue": (-0.1, 0.1),
}  # fmt: skip
# Nodes VIEWS; between them, all steps of ours.
CONFIGS: dict[str, dict[str, Any]] = {
    "resize and flip": {"scales": (640, 672, 704, 736, 768, 800)},
    "smaller": {"scales": (64, 240), "max_size": 400},
    "crop and colours": {"crop": ("relative_range", 0.6, 0.6), "flip_vertical": 0.5, **COLOURS},
    "jitter and colours": {
        "scales": (), "max_size": 0, "scale_range": (0.1, 2.0), "fixed_size": (512, 512), **COLOURS,
    },
}  # fmt: skip


def checksums() -> dict[str, str]:
    """Name of each view to the CRC32C of its pixels, in hexadecimal."""
    with TemporaryDirectory() as folder:
        return dict(_checksums([*sorted(IMAGES.glob("*.jpg")), *_lossless(Path(folder))]))


def _checksums(paths: list[Path]) -> Iterator[tuple[str, str]]:
    from PIL import Image

    from configs.nodes import ViewsConfig
    from dataset.views import Augmentation, plan_view, render

    for number, path in enumerate(paths):
        with Image.open(path) as image:
            width, height = image.size
        for name, nodes in CONFIGS.items():
            augmentation = Augmentation.of_config(ViewsConfig(**nodes))
            for view in range(VIEWS):
                planned = plan_view(
                    augmentation, image_id=number, view=view, height=height, width=width
                )
                yield f"{name}, {path.name}, view {view}", f"{render(path, planned).crc32c:08x}"


def _lossless(folder: Path) -> Iterator[Path]:
    """Write images whose levels no library has a part in: edges, gradients and noise."""
    import numpy as np
    from PIL import Image

    for height, width in SIZES:
        y, x, channel = np.indices((height, width, 3))
        noise = (x * 7919 + y * 104_729 + channel * 31) ** 2 // 977 % 61
        levels = (x * 3 + y * 2 + channel * 40) % 195 + noise
        path = folder / f"{height}x{width}.png"
        Image.fromarray(levels.astype(np.uint8)).save(path)
        yield path


def _versions() -> str:
    from detectors.versions import library_versions

    versions = library_versions()
    found = (f"{name} {versions[name]}" for name in LIBRARIES)
    return f"{', '.join(found)}, Python {platform.python_version()}, {platform.machine()}"


def main(argv: list[str] | None = None) -> int:
    """Compare; 1 if a view came out otherwise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the checksums here too")
    add_example(parser, "--json output/versions.json")
    args = parser.parse_args(argv)
    found = checksums()
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    expected: dict[str, str] = json.loads(EXPECTED.read_text())
    other = [key for key in expected if found.get(key) != expected[key]]
    for key in other:
        print(f"{key}: expected {expected[key]}, got {found.get(key)}")
    print(f"{len(other)} of {len(expected)} views differ: {_versions()}")
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
