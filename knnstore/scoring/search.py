"""Find neighbours in one store or several, in this process or on the workers of a runner."""

from collections.abc import Callable

import torch

from knnstore.arrays import Float32
from knnstore.datastore.store import Datastore
from knnstore.datastore.stores import Stores
from knnstore.indexes.exact import exact_search
from knnstore.indexes.protocols import Method
from knnstore.indexes.registry import open_searcher
from knnstore.neighbours import Neighbours, nearest_of_all
from knnstore.scheduling import Runner
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.shards import search_sharded


class StoresSearch:
    """Searches several stores for the nearest keys of all; distances are comparable, because one LM made all keys."""

    def __init__(
        self,
        stores: Stores,
        options: ScoreOptions,
        memory: int,
        runner: Runner | None = None,
        device: torch.device | None = None,
    ) -> None:
        """``device``: of the LM; if it is a GPU, the lists are searched there too."""
        gpu = device if device is not None and device.type == "cuda" else None
        self._parts = [_StoreSearch(store, options, memory, runner, gpu) for store in stores.each]
        self._rows = [store.rows for store in stores.each]

    def __call__(
        self, queries: Float32, k: int, *, rows: bool = False, advance: Callable[[float], None] = lambda _: None
    ) -> Neighbours:
        """Return the k nearest keys of float32 queries (n, d); ``advance`` is called with the queries processed."""
        share = lambda queries: advance(queries / len(self._parts))  # noqa: E731 - one expression, used in a loop
        return nearest_of_all([part(queries, k, rows=rows, advance=share) for part in self._parts], self._rows)

    @property
    def stores(self) -> int:
        """Return the number of stores."""
        return len(self._parts)

    @property
    def nprobe(self) -> int | None:
        """Return the number of lists that a query searches in each store; None if exact."""
        return self._parts[0].nprobe

    @property
    def recall(self) -> float | None:
        """Return the lowest recall of the indexes' self-checks for this method; None if one is unknown."""
        recalls = [part.recall for part in self._parts]
        known = [recall for recall in recalls if recall is not None]
        return min(known) if len(known) == len(recalls) else None

    @property
    def words(self) -> str:
        """Return the method of the search as text."""
        if len(self._parts) == 1:
            return self._parts[0].words
        return "; ".join(f"{part.name}: {part.words}" for part in self._parts)


class _StoreSearch:
    """Searches one store."""

    def __init__(
        self, store: Datastore, options: ScoreOptions, memory: int, runner: Runner | None, gpu: torch.device | None
    ) -> None:
        self._runner = runner
        self._store = store
        self.name = store.name
        self._memory = memory
        self._method: Method = "quantised" if options.quantised else "lists"
        self._searcher = None if options.exact else open_searcher(store, gpu)
        self.nprobe = None
        if self._searcher is not None:
            self.nprobe = min(options.nprobe or self._searcher.nprobe, self._searcher.plan.nlist)

    def __call__(
        self, queries: Float32, k: int, *, rows: bool = False, advance: Callable[[float], None] = lambda _: None
    ) -> Neighbours:
        """Return the k nearest keys of float32 queries (n, d); ``advance`` is called with the queries processed."""
        each = self.nprobe or self._store.rows  # per query: number of lists, or of keys
        progress = lambda pairs: advance(pairs / each)  # noqa: E731 - one expression, used in two calls
        if self._searcher is None:
            return exact_search(self._store, queries, k, rows=rows, memory=self._memory, progress=progress)
        if self._runner is not None and not rows and self.nprobe is not None:
            return search_sharded(
                self._store,
                self._searcher,
                queries,
                k,
                self.nprobe,
                method=self._method,
                memory=self._memory,
                runner=self._runner,
                advance=advance,
            )
        return self._searcher.search(
            queries, k, self.nprobe, method=self._method, rows=rows, memory=self._memory, progress=progress
        )

    @property
    def recall(self) -> float | None:
        """Return the recall of the index's self-check for this method; None if unknown."""
        if self._searcher is None or self.nprobe != self._searcher.nprobe:
            return None
        check = self._searcher.check
        return check.recall_quantised if self._method == "quantised" else check.recall

    @property
    def words(self) -> str:
        """Return the method of the search as text."""
        if self._searcher is None or self.nprobe is None:
            return "exact: every key"
        recall = "" if self.recall is None else f", recall {self.recall:.3f} in the index's self-check"
        return f"{self._searcher.words(self._method, self.nprobe)}{recall}"
