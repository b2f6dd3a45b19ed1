"""What an annotation file holds, as arrays: its images and its objects.

Shape letters: N images, M objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTable:
    """The images of one annotation file, sorted by id.

    Attributes:
        ids: (N,) int64, unique, ascending.
        file_names: N names as the file has them; `dataset.image_files` finds them under a root.
        heights: (N,) int32, pixels of the stored image, after EXIF rotation.
        widths: (N,) int32, likewise.
    """

    ids: NDArray[np.int64]
    file_names: list[str]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.file_names)

    def __iter__(self) -> Iterator[tuple[int, str, int, int]]:
        """The images one by one: id, file name, height and width."""
        ids, heights, widths = self.ids.tolist(), self.heights.tolist(), self.widths.tolist()
        return zip(ids, self.file_names, heights, widths, strict=True)

    def first(self, count: int) -> ImageTable:
        """Return the table of the `count` images with the lowest ids; 0 keeps all."""
        return self.rows(np.arange(min(count or len(self), len(self))))

    def without(self, ids: ArrayLike) -> ImageTable:
        """Return the table of the images that have none of these ids."""
        return self.rows(np.flatnonzero(~np.isin(self.ids, ids)))

    def rows(self, numbers: NDArray[np.intp]) -> ImageTable:
        """Return the table of these rows; the numbers ascend."""
        return ImageTable(
            ids=self.ids[numbers],
            file_names=[self.file_names[number] for number in numbers.tolist()],
            heights=self.heights[numbers],
            widths=self.widths[numbers],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectTable:
    """The objects of one annotation file, in its order.

    Attributes:
        numbers: (M,) int64, position in the file's list.
        ids: (M,) int64, unique in a file that is not refused.
        image_ids: (M,) int64, each the id of an image.
        category_ids: (M,) int64, each the id of a category.
        boxes_xywh_abs: (M, 4) float64, left, top, width, height, pixels of the image.
        areas: (M,) float64, square pixels.
        crowds: (M,) bool, whether it stands for a group of objects.
    """

    numbers: NDArray[np.int64]
    ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes_xywh_abs: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, chosen: NDArray[np.bool_]) -> ObjectTable:
        """Return the table of the rows that an (M,) mask keeps."""
        return ObjectTable(**{name: column[chosen] for name, column in vars(self).items()})
