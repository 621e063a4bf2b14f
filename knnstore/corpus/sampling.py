"""Sample the text of a file, to estimate the size of a corpus before reading it."""

from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader, BytesIO
from itertools import islice
from typing import BinaryIO, cast

import pyarrow.parquet as pq

from knnstore.corpus.documents import read_documents
from knnstore.corpus.listing import Source
from knnstore.corpus.opening import naming_errors, open_unchanged
from knnstore.corpus.options import ReadCounts, ReadOptions
from knnstore.corpus.rows import parse_line, parse_row, read_lines, read_rows
from knnstore.corpus.text import UnusableTextError
from knnstore.corpus.unpacking import as_utf8, unpack
from knnstore.corpus.values import read_values
from knnstore.errors import CorpusError

_TEXT = 2**16  # characters sampled per file
_ROWS = 256  # maximum number of records sampled
_PACKED = 2**20  # compressed bytes from which the expansion is estimated
_MOST_UNPACKED = 2**24


def sample_text(source: Source, options: ReadOptions) -> tuple[str, float]:
    """Return text from the beginning of a file, and the share of the file's bytes that it represents.

    Unusable records are skipped; the share is 0 if nothing was read. Raises the errors of ``read_documents`` if the
    file can't be read at all.
    """
    if source.kind in ("text", "html"):
        document = next(read_documents(source, ReadOptions(errors="replace", piece_chars=_TEXT)), None)
        text = "" if document is None else next(document.pieces)
        if document is not None and source.kind == "html":  # most of a page is markup
            return text, len(text) / sum(map(len, document.pieces), len(text))
        return text, min(1.0, len(text.encode()) / max(1.0, source.bytes * expansion(source)))
    records = _rows(source, options) if source.kind == "parquet" else _lines(source, options)
    share, texts, size = 0.0, [], 0
    for text, part in islice(records, _ROWS):
        texts.append(text)
        share, size = share + part, size + len(text)
        if size >= _TEXT:
            break
    return "\n".join(texts), min(1.0, share)


def expansion(source: Source) -> float:
    """Return the UTF-8 bytes per byte of the file, estimated from its beginning; 1 for plain UTF-8."""
    with open_unchanged(source.path, source.bytes, source.folder) as file, naming_errors(source.path):
        data = file.read(_PACKED)
    packed = cast(BinaryIO, BufferedReader(BytesIO(data)))
    with naming_errors(source.path):
        stream, size = as_utf8(unpack(packed, source.path)), 0
    if stream is packed:
        return 1.0
    # the data is truncated here; real damage is reported when the file is read
    with suppress(CorpusError), naming_errors(source.path):
        while size < _MOST_UNPACKED and (block := stream.read(2**16)):
            size += len(block)
    return size / len(data) if size else 1.0


def _lines(source: Source, options: ReadOptions) -> Iterator[tuple[str, float]]:
    """Yield the texts of records and the share of the file of each, up to the first that is too long."""
    whole = source.bytes * expansion(source)
    read = read_values if source.kind == "json" else read_lines
    for _, line in read(source, 16 * _TEXT):
        if line is None:
            return
        with suppress(UnusableTextError):
            yield parse_line(line, options, ReadCounts()).text, len(line) / whole


def _rows(source: Source, options: ReadOptions) -> Iterator[tuple[str, float]]:
    with open_unchanged(source.path, source.bytes, source.folder) as file, naming_errors(source.path):
        rows = pq.read_metadata(file).num_rows
    for _, row in read_rows(source, options.text_field):
        with suppress(UnusableTextError):
            yield parse_row(row, options, ReadCounts()).text, 1 / rows
