"""Node DATASET."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Node DATASET: a COCO-format folder of the user's own, and which of the images to use.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "DATASET"

    # Folder to register: its annotations/instances_<split>.json become datasets folder_<split>.
    folder: str = ""
    # Text file of the ids of the images to use, one a line; relative to the working directory.
    # Empty: all. A training may use some of the images that its cache holds. Of several data sets
    # the ids are those of `dataset.sets`.
    image_list: str = ""
    # Use only the first images of each data set by id, of the list if there is one; 0: all.
    max_images: int = 0
    # Text file of such ids, of images that a dump leaves out because they cannot be read, and that
    # are not trained on; a dump writes it. The plan keeps them, so that a cache stays the same one.
    # Evaluation is of all images of DATASETS.TEST.
    exclude: str = ""

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.place("folder")
        checks.place("image_list")
        checks.place("exclude")
        checks.integer("max_images", at_least=0)
