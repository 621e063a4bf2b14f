"""Search a finished index: exact distances in the probed lists, PQ codes with or without re-ranking, or all keys."""

import os
from copy import copy
from functools import cached_property

import numpy as np
import torch

from knnstore.arrays import Float32, Int64
from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError, UnfinishedError, UsageError
from knnstore.indexes.compute.choice import host_engine, joins_on
from knnstore.indexes.compute.protocols import query_bytes
from knnstore.indexes.exact import check_queries, exact_search
from knnstore.indexes.ivfpq.batch import Batch, Lists, Tags
from knnstore.indexes.ivfpq.coded import look_up_codes
from knnstore.indexes.ivfpq.join import join_in_threads
from knnstore.indexes.ivfpq.lists import SegmentLists
from knnstore.indexes.ivfpq.lookup import FEW, look_up, prepare
from knnstore.indexes.ivfpq.plan import IvfPqFolder, open_ivfpq
from knnstore.indexes.ivfpq.quantiser import load_quantiser
from knnstore.indexes.ivfpq.rerank import rerank_exactly
from knnstore.indexes.plan import Check, finished_index, load_check
from knnstore.indexes.protocols import Method, Progress
from knnstore.indexes.sharing import block_sizes, concatenate
from knnstore.neighbours import Neighbours
from knnstore.planning import NATIVE_LOOKUP, REFERENCE_LOOKUP, Lookup, choose_lookup
from knnstore.sizes import format_size
from knnstore.wording import command

_SCRATCH_BYTES = 2**27
_PROBE_BLOCK = 16384


class Searcher:
    """Searches all segments of a store together.

    Hidden documents are never returned; the next nearest keys are instead. Raises UnfinishedError if no index is
    finished or a segment isn't in it, MismatchError if it was made from other segments, CorruptStoreError if the files
    differ from the plan.
    """

    def __init__(
        self,
        store: Datastore,
        folder: IvfPqFolder | None = None,
        *,
        checked: bool = True,
        device: torch.device | None = None,
    ) -> None:
        """``folder``: an index of these segments; None for the store's. ``checked``: whether it must have a self-check.

        ``device``: device for bulk joins; None for this host's engine.
        """
        self._engine = host_engine()
        self._joins = joins_on(device)
        self._store = store
        self._folder = folder or open_ivfpq(store.root, finished_index(store))
        self.plan = self._folder.plan
        self.nprobe: int = self.plan.nprobe
        self.quantiser = load_quantiser(self._folder)
        self._parts: list[SegmentLists] = []
        first_row = 0
        for segment, hidden in zip(store.segments, store.hidden, strict=True):
            if segment.rows:
                part = SegmentLists(self._folder, segment, first_row, hidden, checked=checked)
                self._parts.append(part)
            first_row += segment.rows
        if not self._parts:
            raise UnfinishedError(f"{store.root} holds no keys: ingest some text first")

    @property
    def parts(self) -> tuple[SegmentLists, ...]:
        """Return the lists of each segment with keys, oldest first."""
        return tuple(self._parts)

    @cached_property
    def check(self) -> Check:
        """Return the result of the self-check, over all segments."""
        return load_check(self._folder, [part.reference for part in self._parts])

    def within(self, first: int, last: int) -> "Searcher":
        """Return the same index with only lists ``[first, last)``; the others appear empty."""
        other = copy(self)
        other._parts = [part.within(first, last) for part in self._parts]
        return other

    def list_sizes(self) -> Int64:
        """Return the number of keys in each list: int64 (nlist,)."""
        sizes: Int64 = np.sum([np.diff(part.offsets) for part in self._parts], axis=0)
        return sizes

    def prepare(self) -> None:
        """Open the files that single queries will read, so that the first query doesn't wait for that."""
        prepare(self._parts)

    def search(
        self,
        queries: Float32,
        k: int,
        nprobe: int | None = None,
        *,
        method: Method = "lists",
        rerank: int = 0,
        rows: bool = False,
        memory: int = 2**30,
        progress: Progress | None = None,
    ) -> Neighbours:
        """Return the k nearest keys of each query among those that the method compares.

        Args:
            queries: float32 (n, d), finite.
            k: neighbours per query; if fewer are found, the rest is padded with inf and −1.
            nprobe: lists per query, at most nlist; the index's default if None.
            method: ``lists``, exact distances of all keys in the probed lists; ``quantised``, distances of their PQ
                codes; ``exact``, all keys of the store; ``auto``, ``lists``, or for a few queries the choice of
                ``lookup``.
            rerank: for ``quantised``: re-rank the best rerank × k candidates by exact distance (0: none).
            rows: whether to return the neighbours' row numbers.
            memory: bytes for the working set, besides the queries and the result; less memory means more passes.
            progress: called with the number of finished (query, list) pairs, or (query, key) pairs if exact.

        Raises UsageError or NumericsError for invalid arguments, CorruptStoreError for damaged chunks.
        """
        check_queries(queries, self.plan.dimension, k)
        if rerank < 0 or (rerank and method != "quantised"):
            raise UsageError(f"re-ranking {rerank} × k requires method 'quantised', not {method!r}")
        if method == "auto":
            rerank = self.lookup(k, nprobe).rerank if len(queries) <= FEW else 0
            method = "quantised" if rerank else "lists"
        if method == "exact":
            return exact_search(self._store, queries, k, rows=rows, memory=memory, progress=progress)
        if method not in ("lists", "quantised"):
            raise UsageError(f"method {method!r} is none of auto, lists, quantised, exact")
        nprobe = self._lists_probed(nprobe)
        lists = self._lists(method, "positions" if rerank else "rows" if rows else None)
        memory = self._joins.memory(memory)
        queries = np.ascontiguousarray(queries)
        each = query_bytes(max(1, rerank) * k, tags=lists.tags is not None) + 8 * self.plan.dimension + 24 * nprobe
        pieces = []
        for begin, end in block_sizes(len(queries), each, memory - _SCRATCH_BYTES):
            block = queries[begin:end]
            batch = Batch(block, self.probe(block, nprobe))
            if len(batch) <= FEW and (rerank or method == "lists"):
                pieces.append(
                    look_up_codes(batch, lists, k, rerank, rows=rows) if rerank else look_up(batch, lists, k, rows=rows)
                )
                if progress:
                    progress(batch.probed.size)
                continue
            nearest = join_in_threads(batch, lists, max(1, rerank) * k, progress)
            pieces.append(rerank_exactly(block, nearest, k, self._parts, rows=rows) if rerank else nearest.neighbours())
        return self._checked(concatenate(pieces))

    def _checked(self, neighbours: Neighbours) -> Neighbours:
        """Return the neighbours. Raises CorruptStoreError if any value is no token, or any row no row of the store."""
        vocabulary, rows = self._store.manifest.model.vocabulary, self._store.rows
        for what, numbers, limit in (("token", neighbours.values, vocabulary), ("row", neighbours.rows, rows)):
            if numbers is not None and numbers.size and int(numbers.max()) >= limit:
                raise CorruptStoreError(
                    f"{self._folder.root} has {what} {int(numbers.max())}, but the store has only {limit}: see what "
                    f"else is damaged with {command('verify')}"
                )
        return neighbours

    def _lists(self, method: Method, tags: Tags | None) -> Lists:
        return Lists(self._parts, self.quantiser, self._engine, self._joins, coded=method == "quantised", tags=tags)

    def lookup(self, k: int, nprobe: int | None = None) -> Lookup:
        """Return the faster way to search for a single query, by the cost of computing and reading."""
        plan = self.plan
        key_dtype = np.dtype(plan.key_dtype)
        key_bytes, rows = plan.dimension * key_dtype.itemsize, int(self.list_sizes().sum())
        return choose_lookup(
            self._lists_probed(nprobe) * rows // plan.nlist,
            dimension=plan.dimension,
            key_bytes=key_bytes,
            pq_bytes=plan.pq_bytes,
            k=k,
            rates=NATIVE_LOOKUP if self._engine.scans(key_dtype) else REFERENCE_LOOKUP,
            cold=max(0.0, 1 - _machine_bytes() / (rows * key_bytes)) if rows else 0.0,
        )

    def words(self, method: Method, nprobe: int, k: int = 0) -> str:
        """Return a description of how ``search`` finds k neighbours."""
        where = f"in {nprobe} of {self.plan.nlist} lists"
        if method != "auto":
            return f"{'distances of the PQ codes' if method == 'quantised' else 'exact distances'} {where}"
        way, how = self.lookup(k, nprobe), "exact distances of all keys"
        if way.rerank:
            how = f"codes, and exact distances of the best {way.rerank} × {k},"
        return f"{how} {where}, {format_size(way.bytes)} per token"

    def _lists_probed(self, nprobe: int | None) -> int:
        nprobe = min(self.nprobe if nprobe is None else nprobe, self.plan.nlist)
        if nprobe < 1:
            raise UsageError(f"nprobe is {nprobe}: give at least 1")
        return nprobe

    def probe(self, queries: Float32, nprobe: int) -> Int64:
        """Return the lists nearest to each query, nearest first: int64 (n, nprobe)."""
        blocks = range(0, len(queries), _PROBE_BLOCK)
        probed = [self.quantiser.coarse.probe(queries[begin : begin + _PROBE_BLOCK], nprobe) for begin in blocks]
        return np.concatenate(probed) if probed else np.empty((0, nprobe), np.int64)


def _machine_bytes() -> int:
    """Return the bytes of this machine's memory, which caches data that is read repeatedly."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
