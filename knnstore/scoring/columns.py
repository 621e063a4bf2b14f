"""Columns of numbers gathered block by block in a pass over a text, one row per token."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Columns:
    """Arrays by name, appended to along their first axis."""

    parts: dict[str, list[NDArray[Any]]] = field(default_factory=dict)

    def append(self, **columns: NDArray[Any]) -> None:
        """Append the rows of a block."""
        for name, column in columns.items():
            self.parts.setdefault(name, []).append(column)

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column of all blocks."""
        parts = self.parts[name]
        if len(parts) > 1:
            self.parts[name] = parts = [np.concatenate(parts)]
        return parts[0]
