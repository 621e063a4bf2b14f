"""``KeySource``: provides the keys and values of an import."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np


class KeySource(ABC):
    """Keys and the tokens that follow them, from any source: another toolkit's files, another framework, a service.

    It is sent to workers, so it must be picklable, and every read of the same rows must return the same numbers.
    """

    name: str
    """The origin of the keys, such as a path; names the store's document and appears in messages."""
    rows: int
    """Number of pairs of a key and a value."""
    dimension: int
    """Width of a key."""
    remedy: str = "check how they were made"
    """What to do about keys or values that can't be stored."""

    @abstractmethod
    def read_keys(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Return the keys of rows ``[begin, end)``: floats (end - begin, dimension)."""

    @abstractmethod
    def read_values(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Return the token ids of rows ``[begin, end)``: integers (end - begin,)."""

    def documents(self) -> Sequence[tuple[str, int]]:
        """Return the name and the number of rows of each document, in order; by default all rows are one."""
        return [(self.name, self.rows)]

    def facts(self) -> list[Any]:
        """Return JSON that identifies the source, so that an interrupted import isn't resumed from another one."""
        return [self.rows, self.name, self.dimension]

    def for_vocabulary(self, tokens: int) -> "KeySource":
        """Return the same source, read as ids of a vocabulary of ``tokens``. Raises CorpusError if it can't be."""
        return self
