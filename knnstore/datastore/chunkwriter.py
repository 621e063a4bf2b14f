"""Append any number of rows to an array that is written in whole chunks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Rows = np.ndarray[Any, Any]


class ChunkWriter:
    """Collect rows into whole chunks and pass each to ``write(chunk, rows)``, starting with chunk ``first``.

    ``results``: the return value of ``write`` for each chunk.
    """

    def __init__(self, write: Callable[[int, Rows], Any], chunk_rows: int, first: int = 0) -> None:
        self.results: list[Any] = []
        self._write = write
        self._chunk_rows = chunk_rows
        self._chunk = first
        self._waiting: list[Rows] = []
        self._rows = 0

    def append(self, rows: Sequence[Any] | Rows) -> None:
        """Append rows."""
        while len(rows):
            room = self._chunk_rows - self._rows
            self._waiting.append(np.asarray(rows[:room]))
            self._rows += len(self._waiting[-1])
            rows = rows[room:]
            if self._rows == self._chunk_rows:
                self._flush()

    def finish(self) -> None:
        """Write the remaining rows as the last chunk."""
        if self._rows:
            self._flush()

    def _flush(self) -> None:
        self.results.append(self._write(self._chunk, np.concatenate(self._waiting)))
        self._chunk += 1
        self._waiting, self._rows = [], 0
