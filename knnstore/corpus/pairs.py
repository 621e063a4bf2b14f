"""Pairs of texts, source and target: from two parallel files, columns of TSV, or fields of JSON or Parquet."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

import pyarrow.parquet as pq

from knnstore.corpus.fields import bytes_in, column_path, skip_hint, string_in
from knnstore.corpus.listing import Source
from knnstore.corpus.opening import BLOCK_BYTES, naming_errors, open_unchanged
from knnstore.corpus.options import ReadCounts, ReadOptions
from knnstore.corpus.rows import Record, every_line, label_of, parse_object, read_lines
from knnstore.corpus.text import UnusableTextError, clean, decode, oversized
from knnstore.corpus.values import read_values
from knnstore.errors import CorpusError
from knnstore.wording import option

DEFAULT_FIELDS = ("source", "target")
_BATCH_ROWS = 1024

Parse = Callable[[], Record]


def _field_hint() -> str:
    return f"name others with {option('source_field')} and {option('target_field')}"


def unparsed_pairs(source: Source, options: ReadOptions, counts: ReadCounts) -> Iterator[tuple[int, Parse]]:
    """Yield record numbers from 0 with a function that parses the pair or raises UnusableTextError."""
    assert options.pairs is not None
    if source.kind == "aligned":
        for number, lines in _read_aligned(source, options.max_record_bytes):
            yield number, partial(_parse_aligned, lines, options, counts)
    elif source.kind == "tsv":
        columns = _columns_of_tsv(source, options.pairs)
        for number, line in read_lines(source, options.max_record_bytes):
            yield number, partial(_parse_tsv, line, columns, options, counts)
    elif source.kind in ("jsonl", "json"):
        read = read_lines if source.kind == "jsonl" else read_values
        for number, line in read(source, options.max_record_bytes):
            yield number, partial(_parse_object, line, options, counts)
    else:
        for number, row in _read_rows(source, options.pairs):
            yield number, partial(_parse_row, row, options, counts)


def _read_aligned(source: Source, max_bytes: int) -> Iterator[tuple[int, tuple[bytes | None, bytes | None]]]:
    other = replace(source, path=source.beside, bytes=source.beside_bytes)
    sides = [every_line(file, max_bytes) for file in (other, source)]
    number = 0
    while True:
        first, second = ([*islice(side, 1)] for side in sides)  # empty at the end of a file
        if len(first) != len(second):
            short, long = (source.beside, source.path) if second else (source.path, source.beside)
            raise CorpusError(
                f"{short!r} ends after {number} lines and {long!r} is longer, so they aren't parallel: line n of one "
                "must correspond to line n of the other"
            )
        if not first:
            return
        yield number, (first[0], second[0])
        number += 1


def _parse_aligned(lines: tuple[bytes | None, bytes | None], options: ReadOptions, counts: ReadCounts) -> Record:
    if None in lines:
        raise oversized(options.max_record_bytes)
    source, target = (decode(line or b"", options.errors, counts).strip() for line in lines)
    return Record(target, None, source)


def _columns_of_tsv(source: Source, fields: tuple[str, str]) -> tuple[int, int]:
    """Return the columns, from 0, of source and target: the first two unless ``fields`` has numbers from 1."""
    if fields == DEFAULT_FIELDS:
        return 0, 1
    if not all(field.isascii() and field.isdigit() and int(field) > 0 for field in fields):
        raise CorpusError(
            f"{source.path!r} has no column names, so {' and '.join(map(repr, fields))} can't be found: give column "
            f"numbers, such as {option('source_field', 1)} {option('target_field', 2)}"
        )
    return int(fields[0]) - 1, int(fields[1]) - 1


def _parse_tsv(line: bytes | None, columns: tuple[int, int], options: ReadOptions, counts: ReadCounts) -> Record:
    if line is None:
        raise oversized(options.max_record_bytes)
    cells = decode(line, options.errors, counts).rstrip("\r\n").split("\t")
    if len(cells) <= max(columns):
        raise UnusableTextError(f"{len(cells)} columns, but column {max(columns) + 1} is needed; {skip_hint()}")
    source, target = (cells[column].strip() for column in columns)
    return Record(target, None, source)


def _parse_object(line: bytes | None, options: ReadOptions, counts: ReadCounts) -> Record:
    record = parse_object(line, options, counts)
    assert options.pairs is not None
    source, target = (clean(string_in(record, name, _field_hint), options.errors, counts) for name in options.pairs)
    return Record(target, label_of(record.get("id")), source)


Row = tuple[bytes | None, bytes | None, object]
"""The UTF-8 bytes of source and target in a Parquet row, None for null, and its id."""


def _read_rows(source: Source, fields: tuple[str, str]) -> Iterator[tuple[int, Row]]:
    with open_unchanged(source.path, source.bytes, source.folder) as file, naming_errors(source.path):
        parquet = pq.ParquetFile(file, buffer_size=BLOCK_BYTES, page_checksum_verification=True)
        sides = [column_path(parquet.schema_arrow, source.path, name, _field_hint) for name in fields]
        labelled = parquet.schema_arrow.get_field_index("id") >= 0
        columns = [*map(".".join, sides), *(["id"] if labelled else [])]
        number = 0
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            texts = [bytes_in(batch, keys) for keys in sides]
            for row in range(batch.num_rows):
                label = batch.column("id")[row].as_py() if labelled else None
                yield number, (texts[0][row].as_py(), texts[1][row].as_py(), label)
                number += 1


def _parse_row(row: Row, options: ReadOptions, counts: ReadCounts) -> Record:
    source, target, label = row
    if source is None or target is None:
        raise UnusableTextError(f"the source or the target is null; {skip_hint()}")
    return Record(decode(target, options.errors, counts), label_of(label), decode(source, options.errors, counts))
