"""The records of JSON Lines and Parquet files, unparsed and parsed."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from knnstore.corpus.fields import bytes_in, column_path, skip_hint, string_in
from knnstore.corpus.listing import Source
from knnstore.corpus.opening import BLOCK_BYTES, naming_errors, open_unchanged
from knnstore.corpus.options import ReadCounts, ReadOptions
from knnstore.corpus.text import UnusableTextError, clean, decode, oversized
from knnstore.corpus.unpacking import open_utf8
from knnstore.wording import option

_BATCH_BYTES = 2**24
_BATCH_ROWS = 1024

Row = tuple[bytes | None, object]
"""The UTF-8 bytes of the text in a Parquet row, None for null, and its id."""


def _field_hint() -> str:
    return f"name another with {option('text_field')}"


class Record(NamedTuple):
    """The text of a record, its id and, in a pair of texts, the source."""

    text: str
    id: str | None
    source: str | None = None


def read_lines(source: Source, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the numbers from 0 and bytes of lines that aren't blank; None for a line longer than ``max_bytes``."""
    for number, line in enumerate(every_line(source, max_bytes)):
        if line is None or (line and not line.isspace()):
            yield number, line


def every_line(source: Source, max_bytes: int) -> Iterator[bytes | None]:
    """Yield all lines, including blank ones; None for a line longer than ``max_bytes``, which isn't kept."""
    with open_utf8(source) as stream:
        first = True
        while line := stream.readline(max_bytes + 1):
            if len(line) > max_bytes and not line.endswith(b"\n"):
                yield None
                while line and not line.endswith(b"\n"):
                    line = stream.readline(BLOCK_BYTES)
            else:
                yield line.removeprefix(codecs.BOM_UTF8) if first else line
            first = False


def parse_line(line: bytes | None, options: ReadOptions, counts: ReadCounts) -> Record:
    """Return text and id of a line of JSON. Raises UnusableTextError if it has no usable text."""
    record = parse_object(line, options, counts)
    field = options.text_field
    text = string_in(record, field, lambda: f"{_field_hint()}, or {skip_hint()}")
    return Record(clean(text, options.errors, counts), None if field == "id" else label_of(record.get("id")))


def parse_object(line: bytes | None, options: ReadOptions, counts: ReadCounts) -> dict[str, Any]:
    """Return the object on a line of JSON. Raises UnusableTextError if it isn't an object."""
    if line is None:
        raise oversized(options.max_record_bytes)
    try:
        record = json.loads(decode(line, options.errors, counts))
    except RecursionError:
        raise UnusableTextError(f"JSON nested too deeply; {skip_hint()}") from None
    except json.JSONDecodeError as error:
        raise UnusableTextError(f"not JSON: {error.msg} at character {error.pos}; {skip_hint()}") from None
    except ValueError as error:  # an integer with thousands of digits
        raise UnusableTextError(f"not JSON: {error}; {skip_hint()}") from None
    if not isinstance(record, dict):
        raise UnusableTextError(f"a JSON {type(record).__name__} instead of an object; {skip_hint()}")
    return record


def read_rows(source: Source, text_field: str) -> Iterator[tuple[int, Row]]:
    """Yield numbers from 0 and rows of a Parquet file, reading only the text and ``id`` columns.

    Only a few pages of the column are in memory at a time; the page size was chosen by the writer of the file.
    """
    with open_unchanged(source.path, source.bytes, source.folder) as file, naming_errors(source.path):
        # Without a buffer size, pyarrow reads whole column chunks, which can be gigabytes.
        parquet = pq.ParquetFile(file, buffer_size=BLOCK_BYTES, page_checksum_verification=True)
        keys = column_path(parquet.schema_arrow, source.path, text_field, _field_hint)
        labelled = text_field != "id" and parquet.schema_arrow.get_field_index("id") >= 0
        columns = [".".join(keys), *(["id"] if labelled else [])]
        batch_rows = _BATCH_BYTES * parquet.metadata.num_rows // (_encoded_bytes(parquet.metadata) + 1)
        batch_rows = max(1, min(_BATCH_ROWS, batch_rows))
        number = 0
        for batch in parquet.iter_batches(batch_rows, columns=columns, use_threads=False):
            texts = bytes_in(batch, keys)
            for row in range(batch.num_rows):
                label = batch.column("id")[row].as_py() if labelled else None
                yield number, (texts[row].as_py(), label)
                number += 1


def parse_row(row: Row, options: ReadOptions, counts: ReadCounts) -> Record:
    """Return text and id of a row. Raises UnusableTextError if it has no usable text."""
    data, label = row
    if data is None:
        raise UnusableTextError(f"the column {options.text_field!r} is null; {skip_hint()}")
    return Record(decode(data, options.errors, counts), label_of(label))


def _encoded_bytes(metadata: Any) -> int:
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def label_of(value: object) -> str | None:
    """Return an id as valid UTF-8 text."""
    if value is None:
        return None
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "backslashreplace").decode()
