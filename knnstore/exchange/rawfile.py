"""Files of raw numbers, and what is known of their form."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from knnstore.errors import CorpusError, UsageError
from knnstore.exchange.keysource import KeySource
from knnstore.files import storage_errors
from knnstore.wording import option

KeyType = Literal["float16", "float32"]
ValueType = Literal["int16", "int32", "int64"]
KEY_TYPES: tuple[KeyType, ...] = ("float16", "float32")
VALUE_TYPES: tuple[ValueType, ...] = ("int64", "int32", "int16")  # widest first


@dataclass(frozen=True, slots=True)
class RawArray:
    """Numbers in a file: ``rows`` × ``columns`` of little-endian ``dtype``, from byte ``offset`` on."""

    path: Path
    dtype: str
    rows: int
    columns: int
    offset: int = 0

    def read(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Return rows ``[begin, end)``: (end - begin, columns), by plain reads, so that no page stays mapped."""
        each = np.dtype(self.dtype).itemsize * self.columns
        count = (end - begin) * self.columns
        with storage_errors("read", self.path):
            block = np.fromfile(
                self.path, np.dtype(self.dtype).newbyteorder("<"), count, offset=self.offset + begin * each
            )
        if len(block) != count:
            raise CorpusError(f"{self.path} ends before row {end:,}: it has changed since it was opened")
        return block.reshape(-1, self.columns)


@dataclass(frozen=True)
class Memmaps(KeySource):
    """Keys ``(rows, dimension)`` and values ``(rows,)`` of another toolkit. ``found`` describes their form."""

    keys: RawArray
    values: RawArray
    found: str

    @property
    def name(self) -> str:  # type: ignore[override]
        """Return the path of the file of keys."""
        return str(self.keys.path)

    @property
    def rows(self) -> int:  # type: ignore[override]
        """Return the number of pairs of a key and a value."""
        return self.keys.rows

    @property
    def dimension(self) -> int:  # type: ignore[override]
        """Return the width of a key."""
        return self.keys.columns

    @property
    def remedy(self) -> str:  # type: ignore[override]
        """Return what to do about keys or values that can't be stored."""
        return f"check {option('dim')}, {option('key_type')} and {option('value_type')}"

    def read_keys(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """See ``KeySource``."""
        return self.keys.read(begin, end)

    def read_values(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """See ``KeySource``. Raises CorpusError for a negative value."""
        values: np.ndarray[Any, Any] = self.values.read(begin, end)[:, 0]
        if (values >= 0).all():
            return values
        row = int(np.argmax(values < 0))
        where = f"{self.values.path}: value {int(values[row])} of row {begin + row:,}"
        if self.values.dtype == "int16":
            raise CorpusError(
                f"{where} has overflowed int16: give the number of tokens with {option('vocabulary')}, or give the "
                f"{option('model')}; with up to {2**16:,} tokens they can be recovered, else they are lost"
            )
        raise CorpusError(
            f"{where} is negative, which no token is: check {option('value_type')}, or leave the last rows out with "
            f"{option('rows')}"
        )

    def facts(self) -> list[Any]:
        """See ``KeySource``."""
        arrays = (self.keys, self.values)
        return [self.rows, *((array.path.name, array.path.stat().st_size, array.dtype) for array in arrays)]

    def for_vocabulary(self, tokens: int) -> "Memmaps":
        """See ``KeySource``. int16 values that overflowed are recovered if the vocabulary is small enough."""
        if self.values.dtype != "int16" or tokens <= 2**15:
            return self
        if tokens > 2**16:
            raise CorpusError(
                f"{self.values.path}: int16 values can't distinguish {tokens:,} tokens, so the tokens are lost: make "
                "the datastore again"
            )
        return replace(self, values=replace(self.values, dtype="uint16"))


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of the form of the two files; None for unknown."""

    dimension: int | None = None
    rows: int | None = None
    key_type: str | None = None
    value_type: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("dim", self.dimension), ("rows", self.rows)):
            if value is not None and value < 1:
                raise UsageError.about(name, value, limit=1, remedy="give a number above 0")

    def completed(self, other: "Form") -> "Form":
        """Return this form, with unknown parts taken from ``other``."""
        names = ("dimension", "rows", "key_type", "value_type")
        return Form(*(known if (known := getattr(self, name)) is not None else getattr(other, name) for name in names))
