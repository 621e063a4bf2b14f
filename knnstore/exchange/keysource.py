"""``KeySource``: where the keys and values of an import come from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np


class KeySource(ABC):
    """Keys and the tokens that follow them, made by anything: another toolkit's files, another framework, a service.

    Tasks carry it to their processes, so it has to be picklable, and the same rows have to hold the same numbers
    whenever they are read.
    """

    name: str
    """What the keys are of, such as a path: the source of the store's documents, and in messages."""
    rows: int
    """Pairs of a key and a value."""
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
        """Return JSON that tells the source from others, so that an interrupted import isn't finished from another."""
        return [self.rows, self.name, self.dimension]

    def for_vocabulary(self, tokens: int) -> "KeySource":
        """Return the same source, read as tokens of a vocabulary of so many. Raises CorpusError if it can't be."""
        return self
