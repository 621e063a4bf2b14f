"""Appending rows of any length to an array that is written a whole chunk at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.arrays import write_chunk


class ChunkWriter:
    """Gathers rows of any length into whole chunks of the array at ``path``, from its first row on."""

    def __init__(self, path: Path, chunk_rows: int) -> None:
        self._path = path
        self._chunk_rows = chunk_rows
        self._waiting: list[Any] = []
        self._rows = 0
        self._files: list[Path] = []

    def write(self, rows: Sequence[Any] | np.ndarray[Any, Any]) -> None:
        """Append rows."""
        while len(rows):
            room = self._chunk_rows - self._rows
            self._waiting.append(np.asarray(rows[:room]))
            self._rows += len(self._waiting[-1])
            rows = rows[room:]
            if self._rows == self._chunk_rows:
                self._flush()

    def finish(self) -> list[Path]:
        """Write what is left, and return the chunks' files."""
        if self._rows:
            self._flush()
        return self._files

    def _flush(self) -> None:
        self._files.append(write_chunk(self._path, len(self._files), np.concatenate(self._waiting)))
        self._waiting, self._rows = [], 0
