"""A segment: the keys, values and documents of one ingest, immutable once it is finished.

::

    segments/0000/
        segment.json          SegmentPlan: all inputs that its bytes depend on
        documents.parquet     provenance, offsets
        zarr.json             a Zarr v3 group:
        values/               (rows,)            uint16 | uint32   the token of each row, in corpus order
        keys/                 (rows, dimension)  float16 | int8    the hidden state before it
        key_scales/           (dimension,)       float32           int8 only
        heldout/              (tokens,)          like values       held-out documents, for measurements
        queries/              (n, dimension)     float32           keys of held-out tokens, for the index's self-check
        query_tokens/         (n,)               int64             the positions of those tokens in heldout
        sources/              (tokens,)          like values       seq2seq only: the source text of each document
        source_offsets/       (documents + 1,)   int64             seq2seq only: where each source begins
        commits/              one record per task
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.datastore.arrays import Compression, PlannedForm, open_array, read_rows
from knnstore.datastore.commits import COMMITS_FOLDER, CommitLog, load_commit
from knnstore.datastore.documents import VALUE_CHUNK_ROWS, DocumentTable
from knnstore.datastore.keycodec import INT8_LIMIT, LARGEST, KeyCodec, KeyDtype
from knnstore.datastore.layout import DOCUMENTS_FILE, LAYOUT_TASK, SEGMENT_PLAN
from knnstore.datastore.manifest import KeyRecipe, ModelIdentity
from knnstore.errors import CorruptStoreError
from knnstore.files import load_json
from knnstore.records import LATER, fingerprint, from_json
from knnstore.windows import PADDINGS
from knnstore.wording import command

# the tasks that write a segment, in addition to its chunks of keys
DOCUMENTS_TASK, SAMPLES_TASK = "documents", "samples"
_MOST_QUERIES = 2**20
_SOURCES_AT_ONCE = 2**12


def keys_task(chunk: int) -> str:
    """Return the name of the task that writes a chunk of keys."""
    return f"keys-{chunk:06d}"


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """All inputs of a segment. Its fingerprint is in every commit record, so that files of two plans never mix.

    ``sources`` is the digest of the corpus files' names and sizes; ``text_field`` the field of the text, or the fields
    of a pair's source and target, separated by a tab; ``compute`` the LM's dtype and ``versions`` those of the
    libraries, since other versions may change the last bits of a key. ``distinct``: only the first of documents with
    the same text is stored, and unrepeated documents are preferred for holding out; None, as in older stores: all are
    stored. ``padding``: how windows share a batch of the LM (see ``knnstore.windows.Padding``); None, as in older
    stores: ``longest``. ``special_tokens``: whether the spelling of a special token in a document is that token or
    ordinary text; None, as in older stores: it is the token.
    """

    model: ModelIdentity
    key: KeyRecipe
    key_dtype: str
    chunk_rows: int
    sources: str
    text_field: str
    errors: str
    holdout: float
    compute: str
    versions: dict[str, str]
    distinct: bool | None = field(default=None, metadata=LATER)
    padding: str | None = field(default=None, metadata=LATER)
    special_tokens: bool | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if not 0 < self.chunk_rows <= 2**30 or not 0 <= self.holdout < 1:
            raise ValueError(f"impossible chunk_rows {self.chunk_rows} or holdout {self.holdout}")
        if self.key_dtype not in ("float16", "int8"):
            raise ValueError(f"unknown key dtype {self.key_dtype!r}")
        if self.padding not in (None, *PADDINGS):
            raise ValueError(f"unknown padding {self.padding!r}")

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Return the smallest unsigned dtype that holds every token id."""
        return np.dtype(np.uint16 if self.model.vocabulary <= 2**16 else np.uint32)


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """The form of one of a segment's arrays, and the ``task`` that writes it.

    ``rows``: the number of rows in a finished segment. ``dtype``: ``key``, ``token``, or the name of a NumPy dtype.
    ``chunk_rows``: ``planned``, ``all`` in one chunk, or a number. ``wide``: a row is a key rather than one number.
    """

    task: str
    rows: Callable[["Segment"], int]
    dtype: str
    chunk_rows: Literal["planned", "all"] | int
    compression: Compression
    wide: bool = False

    def form(self, plan: SegmentPlan, rows: int) -> PlannedForm:
        """Return the form of the array with that many rows."""
        sizes = {"planned": plan.chunk_rows, "all": max(1, rows)}
        chunk_rows = self.chunk_rows if isinstance(self.chunk_rows, int) else sizes[self.chunk_rows]
        dtypes = {"key": plan.key_dtype, "token": plan.value_dtype.name}
        shape = (rows, plan.key.dimension) if self.wide else (rows,)
        return PlannedForm(shape, chunk_rows, np.dtype(dtypes.get(self.dtype, self.dtype)), self.compression)


def _recorded_queries(segment: "Segment") -> int:
    return int(load_commit(segment.commits.folder / f"{SAMPLES_TASK}.json").number("queries"))


ARRAYS = {
    "values": ArraySpec(DOCUMENTS_TASK, lambda s: s.rows, "token", VALUE_CHUNK_ROWS, "values"),
    "heldout": ArraySpec(DOCUMENTS_TASK, lambda s: int(s.documents.heldout_tokens.sum()), "token", 2**20, "values"),
    # read a few documents at a time
    "sources": ArraySpec(DOCUMENTS_TASK, lambda s: int(s.source_offsets[-1]), "token", 2**18, "values"),
    "source_offsets": ArraySpec(DOCUMENTS_TASK, lambda s: len(s.documents) + 1, "int64", 2**18, "values"),
    "keys": ArraySpec(LAYOUT_TASK, lambda s: s.rows, "key", "planned", "keys", wide=True),
    "key_scales": ArraySpec(SAMPLES_TASK, lambda s: s.dimension, "float32", "all", "none"),
    "queries": ArraySpec(SAMPLES_TASK, _recorded_queries, "float32", "all", "none", wide=True),
    "query_tokens": ArraySpec(SAMPLES_TASK, _recorded_queries, "int64", "all", "none"),
}
"""The arrays of a segment, by name."""


@dataclass(frozen=True, slots=True, eq=False)
class KeyChunk:
    """Keys that are stored together: ``keys`` (n, d) in stored form, ``values`` (n,), ``rows``, int64 (n,)."""

    keys: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    rows: Int64


class KeyOrder(Protocol):
    """Where a segment's keys are stored, and in which order: ``CorpusOrder`` or ``listed.ListOrder``."""

    @property
    def lists(self) -> Path | None:
        """Return the folder of the lists that hold the keys; None if they are in the segment's own array."""
        ...

    def read(self, segment: "Segment", begin: int, end: int) -> np.ndarray[Any, Any]:
        """See ``Segment.keys``."""
        ...

    def find(self, segment: "Segment", rows: Int64) -> Iterator[tuple[Int64, np.ndarray[Any, Any]]]:
        """See ``Segment.find_keys``."""
        ...

    def chunk(self, segment: "Segment", begin: int, end: int) -> KeyChunk:
        """Return the keys at positions ``[begin, end)`` of this order."""
        ...


class CorpusOrder:
    """The keys in corpus order: the ``keys`` array of the segment."""

    lists: Path | None = None

    def read(self, segment: "Segment", begin: int, end: int) -> np.ndarray[Any, Any]:
        """See ``KeyOrder``."""
        return segment.rows_of("keys", begin, end)

    def find(self, segment: "Segment", rows: Int64) -> Iterator[tuple[Int64, np.ndarray[Any, Any]]]:
        """See ``KeyOrder``."""
        chunks = rows // segment.plan.chunk_rows
        for chunk in np.unique(chunks).tolist():
            begin, end = segment.chunk_range(chunk)
            places = np.flatnonzero(chunks == chunk)
            yield places, self.read(segment, begin, end)[rows[places] - begin]

    def chunk(self, segment: "Segment", begin: int, end: int) -> KeyChunk:
        """See ``KeyOrder``."""
        return KeyChunk(self.read(segment, begin, end), segment.values(begin, end), np.arange(begin, end))


class Segment:
    """Read a segment. Opening is cheap; arrays are read by row ranges and verified as they are read."""

    def __init__(self, root: Path, order: KeyOrder | None = None) -> None:
        """``order``: the order of its keys, by default that of the corpus."""
        self.root = root
        self.order: KeyOrder = order or CorpusOrder()
        self.plan = from_json(SegmentPlan, load_json(root / SEGMENT_PLAN), str(root / SEGMENT_PLAN))
        self.fingerprint = fingerprint(self.plan)
        self._sources_read: tuple[int, list[np.ndarray[Any, Any]]] | None = None

    @property
    def commits(self) -> CommitLog:
        """Return the commit records of the segment."""
        return CommitLog(self.root / COMMITS_FOLDER, self.root, self.fingerprint)

    def array_path(self, name: str) -> Path:
        """Return the folder of one of the segment's arrays."""
        return self.root / name

    def form(self, name: str, rows: int | None = None) -> PlannedForm:
        """Return the form of an array, by default with all its rows. Raises CorruptStoreError if unknown."""
        if name not in ARRAYS:
            raise CorruptStoreError(f"{self.array_path(name)} is no array of a segment")
        spec = ARRAYS[name]
        return spec.form(self.plan, spec.rows(self) if rows is None else rows)

    @cached_property
    def documents(self) -> DocumentTable:
        """Return the documents, in corpus order. Raises CorruptStoreError unless the file matches its commit record."""
        check = partial(self.commits.require_file, DOCUMENTS_TASK, DOCUMENTS_FILE)
        return DocumentTable(self.root / DOCUMENTS_FILE, check)

    @cached_property
    def rows(self) -> int:
        """Return the number of (key, value) pairs."""
        return self.documents.rows

    @property
    def dimension(self) -> int:
        """Return the width of a key."""
        return self.plan.key.dimension

    @property
    def chunks(self) -> int:
        """Return the number of chunks of keys."""
        return -(-self.rows // self.plan.chunk_rows)

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """Return the rows ``[begin, end)`` of a chunk of keys."""
        begin = chunk * self.plan.chunk_rows
        return begin, min(begin + self.plan.chunk_rows, self.rows)

    @property
    def keys_path(self) -> Path:
        """Return the folder of the array that the keys are read from."""
        return (self.order.lists or self.root) / "keys"

    @property
    def key_dtype(self) -> np.dtype[Any]:
        """Return the NumPy dtype of stored keys."""
        return np.dtype(self.plan.key_dtype)

    @cached_property
    def codec(self) -> KeyCodec:
        """Return the codec between stored keys and float32."""
        dtype: KeyDtype = "int8" if self.plan.key_dtype == "int8" else "float16"
        if dtype == "float16":
            return KeyCodec(dtype)
        scales = self.rows_of("key_scales", 0, self.dimension)
        if not ((scales > 0) & (scales < LARGEST / INT8_LIMIT)).all():
            raise CorruptStoreError(f"{self.array_path('key_scales')}: a scale isn't positive, or is too large")
        return KeyCodec(dtype, scales.astype(np.float32))

    def keys(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Return the stored keys of rows ``[begin, end)``: ``(end - begin, dimension)`` in the stored dtype.

        If keys are stored only in list order, this scans all row numbers; ``chunk`` and ``find_keys`` read less.
        """
        return self.order.read(self, begin, end)

    def find_keys(self, rows: Int64) -> Iterator[tuple[Int64, np.ndarray[Any, Any]]]:
        """Yield the stored keys of ``rows``, int64 (n,) ascending, chunk by chunk: positions in ``rows``, and keys."""
        return self.order.find(self, rows)

    def chunk(self, number: int) -> KeyChunk:
        """Return a chunk of keys in stored order."""
        return self.order.chunk(self, *self.chunk_range(number))

    def values(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Return the token ids of rows ``[begin, end)``, uint16 or uint32."""
        return self.require_tokens("values", self.rows_of("values", begin, end))

    def queries(self) -> Float32:
        """Return the keys of held-out tokens, float32 ``(n, dimension)``; n is 0 if nothing is held out."""
        count = min(open_array(self.array_path("queries")).shape[0], _MOST_QUERIES)
        queries = self.rows_of("queries", 0, count, count)
        if not (np.abs(queries) < LARGEST).all():  # nor NaN
            raise CorruptStoreError(f"{self.array_path('queries')}: a query isn't finite, or has too large a number")
        return queries

    def query_tokens(self) -> Int64:
        """Return the positions of the queries' tokens in the array ``heldout``: int64 (n,)."""
        path = self.array_path("query_tokens")
        return read_rows(path, 0, open_array(path).shape[0]).astype(np.int64)

    def heldout(self, document: int) -> np.ndarray[Any, Any]:
        """Return the token ids of the held-out part of a document."""
        table = self.documents
        begin = int(table.heldout_first[document])
        return self._heldout[begin : begin + int(table.heldout_tokens[document])].copy()

    @cached_property
    def _heldout(self) -> np.ndarray[Any, Any]:
        """Return all held-out tokens. Cached: a few hundred thousand, which callers read document by document."""
        total = int(self.documents.heldout_tokens.sum())
        return self.require_tokens("heldout", self.rows_of("heldout", 0, total))

    @cached_property
    def source_offsets(self) -> Int64:
        """Return where the source of each document begins in the array ``sources``, and where the last one ends."""
        count = len(self.documents) + 1
        offsets = self.rows_of("source_offsets", 0, count).astype(np.int64)
        if offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise CorruptStoreError(f"{self.array_path('source_offsets')}: the sources don't follow each other")
        return offsets

    def source(self, document: int) -> np.ndarray[Any, Any]:
        """Return the token ids of the source text of a document of a seq2seq store."""
        begin = document - document % _SOURCES_AT_ONCE
        block = self._sources_read
        if block is None or block[0] != begin:  # callers read them in order
            block = begin, self.sources(begin, min(begin + _SOURCES_AT_ONCE, len(self.documents)))
            self._sources_read = block
        return block[1][document - begin]

    def sources(self, begin: int, end: int) -> list[np.ndarray[Any, Any]]:
        """Return the token ids of the sources of documents ``[begin, end)``."""
        offsets = self.source_offsets
        first, last = int(offsets[begin]), int(offsets[end])
        tokens = self.require_tokens("sources", self.rows_of("sources", first, last))
        return np.split(tokens, offsets[begin + 1 : end] - first)

    def context(self, row: int, tokens: int) -> np.ndarray[Any, Any]:
        """Return up to ``tokens`` token ids that precede a row in its document."""
        document = int(self.documents.locate(np.array([row]))[0])
        return self.values(max(int(self.documents.first_row[document]), row - tokens), row)

    def rows_of(self, name: str, begin: int, end: int, count: int | None = None) -> np.ndarray[Any, Any]:
        """Return rows of an array, which must have ``count`` rows. Raises CorruptStoreError if its form is wrong."""
        path = self.array_path(name)
        require_form(path, self.form(name, count))
        return read_rows(path, begin, end)

    def require_tokens(self, name: str, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the tokens. Raises CorruptStoreError, naming the array, if one is beyond the vocabulary."""
        if len(tokens) and int(tokens.max()) >= self.plan.model.vocabulary:
            raise CorruptStoreError(
                f"{self.array_path(name)} has token {int(tokens.max())} of a vocabulary of {self.plan.model.vocabulary}"
            )
        return tokens


def require_form(path: Path, planned: PlannedForm) -> None:
    """Raise CorruptStoreError unless the array at ``path`` has the planned shape and dtype."""
    form = open_array(path)
    if form.shape != planned.shape or form.dtype != planned.dtype:
        raise CorruptStoreError(
            f"{path} is {form.dtype} {form.shape}, not {planned.dtype} {planned.shape}: see what else is damaged with "
            f"{command('verify')}"
        )
