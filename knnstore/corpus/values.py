"""Records of a ``.json`` file: elements of an array, one record per line, or concatenated objects."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice

from knnstore.corpus.fields import field_path
from knnstore.corpus.listing import Source
from knnstore.corpus.opening import BLOCK_BYTES, blocks
from knnstore.corpus.rows import read_lines
from knnstore.corpus.unpacking import open_utf8
from knnstore.errors import CorpusError

_OUTSIDE = re.compile(rb'["{}\[\],]')
_INSIDE = re.compile(rb'["\\]')
_SAMPLED_RECORDS, _SAMPLED_BYTES = 100, 2**24


def read_values(source: Source, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield numbers from 0 and the bytes of records; None for a record longer than ``max_bytes``.

    A file whose first line is an object is read line by line, so that a malformed record affects no other.
    """
    with open_utf8(source) as stream:
        first = stream.readline(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8)
        while first.isspace():
            first = stream.readline(BLOCK_BYTES)
        by_lines = first.lstrip().startswith(b"{") and first.rstrip().endswith(b"}")
        if not by_lines:
            yield from enumerate(split_values(chain([first], blocks(stream, source.path)), max_bytes))
    if by_lines:
        yield from read_lines(source, max_bytes)


def has_records(source: Source, fields: Sequence[str]) -> bool:
    """Return whether one of the first records has the fields, since many ``.json`` files are settings or metadata.

    Return True if that can't be determined, so that reading the file reports why.
    """
    seen = False
    try:
        with open_utf8(source) as stream:
            head = stream.read(_SAMPLED_BYTES).removeprefix(codecs.BOM_UTF8)
        for value in islice(split_values([head], _SAMPLED_BYTES), _SAMPLED_RECORDS):
            seen = True
            with suppress(ValueError, RecursionError, KeyError):
                record = json.loads(value or b"")
                if all(field_path(record, name) for name in fields):
                    return True
    except EOFError:  # the first record is longer or incomplete
        return not seen
    except CorpusError:
        return True
    return False


def split_values(data: Iterable[bytes], max_bytes: int) -> Iterator[bytes | None]:
    """Yield the bytes of each JSON value of a stream, concatenated or in arrays; None for one that is too long.

    Only brackets and strings are tracked; other errors in a value show when it is parsed. Raises EOFError if the stream
    ends inside a value or an array.
    """
    scanner, held, too_long = _Scanner(), bytearray(), False
    for block in data:
        begin = 0
        for end, after in scanner.scan(block):
            held += block[begin:end]
            begin = after
            if too_long or len(held) > max_bytes:
                yield None
            elif held and not held.isspace():
                yield bytes(held)
            held, too_long = bytearray(), False
        held += block[begin:]
        if len(held) > max_bytes:
            held, too_long = bytearray(), True
    if scanner.is_inside:
        raise EOFError("its JSON ends inside a record or an array")
    if held and not held.isspace():
        yield bytes(held)


class _Scanner:
    """Tracks the brackets and strings of JSON across blocks."""

    def __init__(self) -> None:
        self._depth = self._base = 0  # open brackets, and how many of them are an array of records
        self._quoted = False
        self._offset = 0  # of the next block, 1 if its first byte is escaped

    @property
    def is_inside(self) -> bool:
        """Return whether a value or an array is open."""
        return self._depth > 0 or self._quoted

    def scan(self, block: bytes) -> Iterator[tuple[int, int]]:
        """Yield the end of each value in the block and the start of what follows it."""
        at = self._offset
        while match := (_INSIDE if self._quoted else _OUTSIDE).search(block, at):
            mark, at = match[0], match.end()
            if self._quoted:
                self._quoted = mark == b"\\"
                at += self._quoted  # skip the escaped character
            elif mark == b'"':
                self._quoted = True
            elif (ends := self._follow(mark)) is not None:
                yield at - 1 + ends, at
        self._offset = max(0, at - len(block))

    def _follow(self, mark: bytes) -> int | None:
        """Return how many bytes of the mark belong to the value that it ends; None if it ends no value."""
        if mark in b"{[":
            self._depth += 1
            if self._depth > 1 or mark == b"{":
                return None
            self._base = 1
            return 0
        if mark == b",":
            return 0 if self._base and self._depth == self._base else None
        self._depth = max(0, self._depth - 1)
        if self._depth > self._base:
            return None
        closes_value = self._depth == self._base
        self._base = min(self._base, self._depth)
        return int(closes_value)
