"""How a corpus is read, and what was counted while reading it."""

from dataclasses import dataclass
from typing import Literal, get_args

from knnstore.errors import UsageError

ErrorPolicy = Literal["strict", "replace", "skip"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How documents are read; UsageError for values that can't be.

    ``text_field``: the JSON field or Parquet column with the text. ``errors``: what becomes of text that isn't UTF-8
    or has NUL characters: ``strict`` raises, ``replace`` puts U+FFFD, ``skip`` leaves out the document, and records
    that are malformed as well. ``pairs``: None, or the fields or columns of the source and the target of a corpus of
    pairs of texts. ``piece_chars``: the longest text that is tokenised whole, in characters.
    ``max_record_bytes``: the longest line of JSON.
    """

    text_field: str = "text"
    errors: ErrorPolicy = "strict"
    piece_chars: int = 1_000_000
    max_record_bytes: int = 250_000_000
    pairs: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.text_field:
            raise UsageError("text_field is empty: name the field that has the text")
        if self.pairs is not None and not all(self.pairs):
            raise UsageError("source_field or target_field is empty: name the fields that have the texts")
        if self.errors not in get_args(ErrorPolicy):
            raise UsageError(f"errors is {self.errors!r}: choose one of {', '.join(get_args(ErrorPolicy))}")
        for name in ("piece_chars", "max_record_bytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be 1 or more")


@dataclass(slots=True)
class ReadCounts:
    """Running totals of a reader: documents given out, empty ones, skipped ones, and characters put as U+FFFD."""

    documents: int = 0
    empty: int = 0
    skipped: int = 0
    replaced: int = 0
