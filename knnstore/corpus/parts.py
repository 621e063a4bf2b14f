"""Parts of a corpus, made on demand because the list of files may be on disk."""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from knnstore.corpus.listing import Source

_PART_BYTES = 32 * 2**20
_PART_FILES = 2**14

Records = tuple[int, ...] | None
"""Numbers of the records to read from a file, ascending; None for all."""


@dataclass(frozen=True, slots=True)
class TokenPart:
    """The files that one task tokenises, in corpus order; ``index`` counts parts from 0.

    ``records``: the records to read from each file; None for all records of all files.
    """

    index: int
    sources: tuple[Source, ...]
    records: tuple[Records, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Span:
    index: int
    begin: int
    end: int
    bytes: int


class Chosen(Sequence[Source]):
    """The files of a listing with the given ``numbers``."""

    def __init__(self, sources: Sequence[Source], numbers: Sequence[int]) -> None:
        self._sources = sources
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> Source: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[Source, ...]: ...

    def __getitem__(self, number: int | slice) -> Source | tuple[Source, ...]:
        if isinstance(number, int):
            return self._sources[self._numbers[number]]
        return tuple(self._sources[position] for position in self._numbers[number])


class Parts(Sequence[TokenPart]):
    """The parts of a corpus. ``records(source)`` gives the records to read from a file."""

    def __init__(
        self, sources: Sequence[Source], spans: Sequence[_Span], records: Callable[[Source], Records] | None = None
    ) -> None:
        self._sources = sources
        self._spans = spans
        self._records = records

    def __len__(self) -> int:
        return len(self._spans)

    @overload
    def __getitem__(self, number: int) -> TokenPart: ...

    @overload
    def __getitem__(self, number: slice) -> "Parts": ...

    def __getitem__(self, number: int | slice) -> "TokenPart | Parts":
        if isinstance(number, slice):
            return Parts(self._sources, self._spans[number], self._records)
        span = self._spans[number]
        sources = tuple(self._sources[span.begin : span.end])
        records = tuple(map(self._records, sources)) if self._records else None
        return TokenPart(span.index, sources, records)

    @property
    def bytes(self) -> int:
        """Return the size of all files on disk."""
        return sum(span.bytes for span in self._spans)

    def sizes(self) -> dict[int, int]:
        """Return the size of each part by its index."""
        return {span.index: span.bytes for span in self._spans}

    def without(self, done: Container[int]) -> "Parts":
        """Return the parts whose index isn't in ``done``."""
        return Parts(self._sources, [span for span in self._spans if span.index not in done], self._records)


def plan_parts(
    sources: Sequence[Source],
    part_bytes: int = _PART_BYTES,
    part_files: int = _PART_FILES,
    records: Callable[[Source], Records] | None = None,
) -> Parts:
    """Group consecutive files into parts of at most ``part_bytes`` and ``part_files``; larger files are parts alone."""
    cuts = _cuts(sources, part_bytes, part_files)
    return Parts(sources, [_Span(index, *cut) for index, cut in enumerate(cuts)], records)


def _cuts(sources: Sequence[Source], part_bytes: int, part_files: int) -> Iterator[tuple[int, int, int]]:
    """Yield begin, end and bytes of each part."""
    begin, size, number = 0, 0, -1
    for number, source in enumerate(sources):
        if number > begin and (size + source.bytes > part_bytes or number - begin == part_files):
            yield begin, number, size
            begin, size = number, 0
        size += source.bytes
    if number >= begin:
        yield begin, number + 1, size
