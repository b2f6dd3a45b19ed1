"""What a cache asks of its disk or object store each second: while training reads it, while the
dump writes it."""

from __future__ import annotations

from dataclasses import dataclass

from storage.progress import format_bytes

from .sizes import PresetEstimate


@dataclass(frozen=True, kw_only=True)
class ReadRate:
    """What training reads; an image takes one record.

    Attributes:
        images_per_sec: of all ranks together, as given.
        bytes_per_record: on average over the plan.
        requests_per_record: ranges of objects: locally an open and a read each, and one GET each
            in an object store.
        bytes_per_sec, requests_per_sec: at that number of images.
        commit_requests: that come on top, once for each data worker: one per shard that it meets,
            so at most this many.
    """

    images_per_sec: float
    bytes_per_record: float
    requests_per_record: int
    bytes_per_sec: float
    requests_per_sec: float
    commit_requests: int

    @classmethod
    def of(cls, preset: PresetEstimate, images_per_sec: float, *, commits: int) -> ReadRate:
        """The rate under a preset, of a cache with so many commits."""
        return cls(
            images_per_sec=images_per_sec,
            bytes_per_record=preset.read_bytes,
            requests_per_record=preset.read_requests,
            bytes_per_sec=images_per_sec * preset.read_bytes,
            requests_per_sec=images_per_sec * preset.read_requests,
            commit_requests=commits,
        )

    def line(self, about: str) -> str:
        """The rate as text; `about` is said before what compression decides."""
        return (
            f"training at {self.images_per_sec:,g} images/s reads {about}"
            f"{format_bytes(self.bytes_per_sec)}/s in {self.requests_per_sec:,.0f} requests/s "
            f"({self.requests_per_record} per record); each data worker also reads up to "
            f"{self.commit_requests:,} commits, once"
        )


@dataclass(frozen=True, kw_only=True)
class WriteRate:
    """What the dump writes.

    Attributes:
        bytes_per_sec: everything, metadata included.
        objects_per_sec: files, or objects of an object store; claims and logs left out.
    """

    bytes_per_sec: float
    objects_per_sec: float

    @classmethod
    def of(cls, preset: PresetEstimate, records_per_sec: float, *, records: int) -> WriteRate:
        """The rate under a preset, of a plan of so many records."""
        return cls(
            bytes_per_sec=records_per_sec * preset.expected_bytes / records,
            objects_per_sec=records_per_sec * preset.objects / records,
        )

    def line(self, about: str) -> str:
        """The rate as text; `about` is said before what compression decides."""
        return (
            f"the dump then writes {about}{format_bytes(self.bytes_per_sec)}/s in "
            f"{self.objects_per_sec:.1f} objects/s, and reads the records back"
        )
