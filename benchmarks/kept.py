"""Results of finished runs, kept in files: a command that was killed goes on with the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.whole import write_whole


@dataclass(frozen=True)
class Kept:
    """The numbers of the runs in one folder, a file each, written when the run has ended.

    Attributes:
        folder: of the files.
    """

    folder: Path

    def require(self, configs: str) -> None:
        """Make sure that what is kept was measured with these configs.

        Raises:
            ValueError: it was measured with others.
        """
        path = self.folder / "configs.yaml"
        if not path.exists():
            self._write(path, configs)
            return
        before = path.read_text().splitlines()
        lines = configs.splitlines()
        if before != lines:
            changed = list(dict.fromkeys(line.strip() for line in lines if line not in before))
            raise ValueError(
                f"{path}: what is kept was measured with other configs than those of now"
                f" ({'; '.join(changed[:3]) or 'keys were removed'}); delete {self.folder.parent},"
                " or give another --output"
            )

    def has(self, run: str) -> bool:
        """Whether a run has ended."""
        return self._path(run).exists()

    def value(self, run: str, measure: Callable[[], float]) -> float:
        """The number of a run, measured only if it is not kept yet."""
        if not self.has(run):
            self._write(self._path(run), json.dumps(measure()))
        return float(json.loads(self._path(run).read_text()))

    def _path(self, run: str) -> Path:
        return self.folder / f"{run}.json"

    def _write(self, path: Path, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
