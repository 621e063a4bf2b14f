"""Options for reading a corpus, and counts of what was read."""

from dataclasses import dataclass
from typing import Literal, get_args

from knnstore.errors import UsageError

ErrorPolicy = Literal["strict", "replace", "skip"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How documents are read; raises UsageError for invalid values.

    ``text_field``: JSON field or Parquet column with the text. ``errors``: for text that isn't UTF-8 or has NUL
    characters, ``strict`` raises, ``replace`` inserts U+FFFD and ``skip`` leaves the document out, as well as malformed
    records. ``pairs``: the fields or columns of source and target in a corpus of pairs, otherwise None.
    ``piece_chars``: longest text that is tokenised as a whole, in characters. ``max_record_bytes``: longest line of
    JSON.
    """

    text_field: str = "text"
    errors: ErrorPolicy = "strict"
    piece_chars: int = 1_000_000
    max_record_bytes: int = 250_000_000
    pairs: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.text_field:
            raise UsageError("text_field is empty: name the field with the text")
        if self.pairs is not None and not all(self.pairs):
            raise UsageError("source_field or target_field is empty: name the fields with the texts")
        if self.errors not in get_args(ErrorPolicy):
            raise UsageError(f"errors is {self.errors!r}: give one of {', '.join(get_args(ErrorPolicy))}")
        for name in ("piece_chars", "max_record_bytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: give 1 or more")


@dataclass(slots=True)
class ReadCounts:
    """Running totals of a reader: documents yielded, empty and skipped documents, and characters replaced by U+FFFD."""

    documents: int = 0
    empty: int = 0
    skipped: int = 0
    replaced: int = 0
