"""Numbers in a file, and what is known of their form."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from knnstore.errors import CorpusError, UsageError
from knnstore.files import storage_errors

KeyType = Literal["float16", "float32"]
ValueType = Literal["int16", "int32", "int64"]
KEY_TYPES: tuple[KeyType, ...] = ("float16", "float32")
VALUE_TYPES: tuple[ValueType, ...] = ("int64", "int32", "int16")  # widest first


@dataclass(frozen=True, slots=True)
class RawArray:
    """Numbers in a file: ``rows`` of ``columns`` little-endian ``dtype``, from byte ``offset`` on."""

    path: Path
    dtype: str
    rows: int
    columns: int
    offset: int = 0

    def read(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Rows ``[begin, end)``: ``(end - begin, columns)``, by plain reads, so that no page stays mapped."""
        each = np.dtype(self.dtype).itemsize * self.columns
        count = (end - begin) * self.columns
        with storage_errors("read", self.path):
            block = np.fromfile(
                self.path, np.dtype(self.dtype).newbyteorder("<"), count, offset=self.offset + begin * each
            )
        if len(block) != count:
            raise CorpusError(f"{self.path} ends before row {end:,}: it has changed since it was opened")
        return block.reshape(-1, self.columns)


@dataclass(frozen=True, slots=True)
class Memmaps:
    """Keys ``(rows, dimension)`` and values ``(rows,)`` of another toolkit. ``found`` says how their form was known."""

    keys: RawArray
    values: RawArray
    found: str

    @property
    def rows(self) -> int:
        """Pairs of a key and a value."""
        return self.keys.rows


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of the two files' form; None is unknown."""

    dimension: int | None = None
    rows: int | None = None
    key_type: str | None = None
    value_type: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("dim", self.dimension), ("rows", self.rows)):
            if value is not None and value < 1:
                raise UsageError.about(name, value, limit=1, remedy="give a number above 0")

    def completed(self, other: "Form") -> "Form":
        """This one, and the other's where this doesn't know."""
        names = ("dimension", "rows", "key_type", "value_type")
        return Form(*(mine if (mine := getattr(self, name)) is not None else getattr(other, name) for name in names))
