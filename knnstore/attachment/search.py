"""Find the neighbours of a few queries at a time, for a person or a text that is being generated."""

from collections.abc import Callable

import numpy as np

from knnstore.arrays import Float32
from knnstore.datastore.store import Datastore
from knnstore.errors import UsageError
from knnstore.indexes.exact import exact_search
from knnstore.indexes.registry import open_searcher
from knnstore.neighbours import Neighbours

_MEMORY = 2**30


class Search:
    """Searches a store, always with the same method: ``nprobe`` lists, or every key if ``exact``.

    A query computes exact distances of all keys in its lists, or only of the best by their codes, whichever is faster.

    Raises UnfinishedError for a store without an index unless ``exact``. May be used by several threads at once.
    """

    def __init__(self, store: Datastore, *, nprobe: int | None = None, exact: bool = False) -> None:
        if exact and nprobe is not None:
            raise UsageError(f"exact searches every key: omit nprobe={nprobe}")
        self._store = store
        self._searcher = None if exact else open_searcher(store)
        self.nprobe = None
        if self._searcher is not None:
            self._searcher.prepare()
            self.nprobe = min(self._searcher.nprobe if nprobe is None else nprobe, self._searcher.plan.nlist)

    stores = 1

    def __call__(self, queries: Float32, k: int, *, advance: Callable[[float], None] = lambda _: None) -> Neighbours:
        """Return the k nearest keys of float32 queries (n, d), with their rows; ``advance`` is called with ``n``."""
        advance(len(queries))
        if not len(queries):
            nothing = np.empty((0, k), np.int64)
            return Neighbours(nothing.astype(np.float32), nothing, nothing)
        if self._searcher is None:
            return exact_search(self._store, queries, k, rows=True, memory=_MEMORY)
        return self._searcher.search(queries, k, self.nprobe, method="auto", rows=True, memory=_MEMORY)

    def words(self, k: int) -> str:
        """Return the method by which a token's k neighbours are found, as text."""
        if self._searcher is None or self.nprobe is None:
            return "exact distances of every key"
        return self._searcher.words("auto", self.nprobe, k)
