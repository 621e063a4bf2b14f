"""``save_neighbours``: write what a mixture needs per token as Parquet, so that tuning needs no further search."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from knnstore.datastore.manifest import ModelIdentity
from knnstore.errors import CorruptStoreError, UsageError
from knnstore.files import encode_json
from knnstore.lm.scoring import ScoredTokens
from knnstore.mixing.cache import CacheScores
from knnstore.mixing.evidence import Evidence
from knnstore.neighbours import ABSENT, Neighbours
from knnstore.records import from_json, to_json
from knnstore.scoring.parquet_file import ParquetFile
from knnstore.scoring.passes import Block, find_matches, outlook_of
from knnstore.scoring.texts import Texts
from knnstore.suffix_array.search import Suffixes
from knnstore.wording import command

_METADATA = b"knnstore"
_VERSION = 1
_GROUP_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class SavedFacts:
    """Description of a file of neighbours, in its Parquet metadata.

    ``rows``: number of keys in the store when it was searched. ``search``: the method, as text; ``text``: what was
    scored. ``names``, ``digests``, ``tokens`` and ``bytes``: one per document. ``cache``: its number of pairs, with the
    ``cache_temperatures``.
    """

    version: int
    store: str
    model: ModelIdentity
    layer: str
    rows: int
    k: int
    search: str
    text: str
    cache: int
    cache_temperatures: tuple[float, ...]
    names: tuple[str, ...]
    digests: tuple[str, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]


class NeighboursWriter(ParquetFile):
    """Writes blocks one by one; ``finish`` adds the facts, which are known only at the end."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(
            path,
            "save_neighbours",
            compression_level=1,
            use_dictionary=False,
            use_byte_stream_split=["distances.list.element"],
        )
        self._texts: list[Texts] = []
        self._documents = 0

    def write(self, block: Block, texts: Texts, vocabulary: int) -> None:
        """Append a block of the texts: the same ones as in the previous block, or the next."""
        if not self._texts or self._texts[-1] is not texts:
            self._documents = sum(len(earlier.names) for earlier in self._texts)
            self._texts.append(texts)
        self.append(_table(block, self._documents, vocabulary), _GROUP_TOKENS)

    def finish(self, **facts: Any) -> None:
        """Add the facts: all of SavedFacts except the version and the documents."""
        documents: dict[str, Any] = {
            "names": tuple(name for texts in self._texts for name in texts.names),
            "digests": tuple(digest for texts in self._texts for digest in texts.digests),
            "tokens": tuple(int(count) for texts in self._texts for count in texts.tokens),
            "bytes": tuple(int(count) for texts in self._texts for count in texts.bytes),
        }
        record = SavedFacts(version=_VERSION, **facts, **documents)
        self.add_metadata(_METADATA, encode_json(to_json(record)))


def _table(block: Block, documents: int, vocabulary: int) -> pa.Table:
    tokens, neighbours = block.tokens, block.evidence.neighbours
    ids = np.uint16 if vocabulary < 2**16 else np.uint32  # one value is reserved for "absent"
    values = np.where(neighbours.values == ABSENT, np.iinfo(ids).max, neighbours.values).astype(ids)
    columns = {
        "document": pa.array((block.document + documents).astype(np.int32)),
        "row": pa.array(tokens.rows),
        "token": pa.array(tokens.targets.astype(np.uint32)),
        "log_p_lm": pa.array(tokens.log_p),
        "entropy": pa.array(tokens.entropy),
        "leading": _lists(tokens.leading.astype(np.uint32)),
        "leading_log_p": _lists(tokens.leading_log_p),
        "distances": _lists(neighbours.distances),
        "values": _lists(values),
    }
    if block.evidence.cache is not None:
        columns["cache"] = _lists(block.evidence.cache.p)
    return pa.table(columns)


def _lists(array: Any) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).reshape(-1)), array.shape[1])


class SavedNeighbours:
    """Reads a file of neighbours. Raises UsageError for any other file, CorruptStoreError for a damaged one."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UsageError(f"no such file: {path}; make it with {command('score', save_neighbours=path)}")
        maker = command("score", save_neighbours=True)
        try:
            self._file = pq.ParquetFile(self.path.open("rb"))
            metadata = self._file.schema_arrow.metadata or {}
            raw = metadata.get(_METADATA) or self._file.metadata.metadata.get(_METADATA)
        except (OSError, pa.ArrowException, TypeError, AttributeError) as error:
            raise UsageError(f"{path} wasn't written by {maker}: {error}") from error
        if raw is None:
            raise UsageError(f"{path} wasn't written by {maker}")
        try:
            value = json.loads(raw)
        except ValueError as error:
            raise CorruptStoreError(f"{path}: its metadata can't be read: {error}") from error
        self.facts = from_json(SavedFacts, value, str(path))
        if self.facts.version != _VERSION:
            raise UsageError(f"{path} has version {self.facts.version}; this knnstore reads version {_VERSION}")

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def blocks(self, suffixes: Suffixes | None = None) -> Iterator[Block]:
        """Yield the saved blocks in order, with matches in an exact-match memory if given.

        The queries aren't in the file: ``tokens.keys`` is (n, 0).
        """
        try:
            columns = self._file.read(["token", "document"])
            ids, document = (columns.column(name).to_numpy() for name in ("token", "document"))
            first, position = np.searchsorted(document, document), 0
            for batch in self._file.iter_batches(batch_size=_GROUP_TOKENS):
                block, rows = self._block(batch), np.arange(position, position + len(batch))
                position += len(batch)
                matches = find_matches(suffixes, ids, first[rows], rows)
                yield replace(block, evidence=replace(block.evidence, matches=matches))
        except (OSError, pa.ArrowException) as error:
            raise CorruptStoreError(f"{self.path} is damaged: {error}; score again to rewrite it") from error

    def _block(self, batch: pa.RecordBatch) -> Block:
        def plain(name: str) -> Any:
            return batch.column(name).to_numpy(zero_copy_only=False)

        def lists(name: str) -> Any:
            column = batch.column(name)
            return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)

        values = lists("values")
        absent = values == np.iinfo(values.dtype).max
        values = values.astype(np.int64)
        values[absent] = ABSENT
        leading, leading_log_p = lists("leading").astype(np.int64), lists("leading_log_p")
        tokens = ScoredTokens(
            rows=plain("row"),
            keys=np.empty((len(batch), 0), np.float32),
            targets=plain("token").astype(np.int64),
            log_p=plain("log_p_lm"),
            top=leading[:, 0],
            top_log_p=leading_log_p[:, 0].astype(np.float64),
            leading=leading,
            leading_log_p=leading_log_p,
            entropy=plain("entropy"),
        )
        cache = CacheScores(lists("cache"), self.facts.cache_temperatures) if self.facts.cache else None
        evidence = Evidence(Neighbours(lists("distances"), values), outlook_of(tokens), cache)
        return Block(tokens, plain("document").astype(np.int64), evidence)
