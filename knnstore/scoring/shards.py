"""Search many queries on a cluster: ranges of lists are distributed, and their k nearest keys are merged here.

The result equals that of one machine, bit for bit. A distance doesn't depend on what else is searched, each range
returns its k nearest in the order in which one machine would find them, and among equal distances the earlier list
comes first in both cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from knnstore.datastore.store import Datastore
from knnstore.errors import MismatchError
from knnstore.files import path_of
from knnstore.indexes.registry import open_searcher
from knnstore.neighbours import ABSENT, Neighbours
from knnstore.scheduling import kept

if TYPE_CHECKING:
    from knnstore.arrays import Float32, Int64, Uint32
    from knnstore.indexes.protocols import Method, OpenIndex
    from knnstore.scheduling import Runner

_MOST_QUERIES = 8192  # per task: with k = 1024 its answer has 64 MB
_ROWS_AT_ONCE = 512
_EMPTY = np.uint64(2**64 - 1)
_SHIFT = np.uint64(32)


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Search shared queries ``[begin, end)`` in lists ``[first, last)`` of a state of a store."""

    store: str
    state: int
    shard: int
    first: int
    last: int
    begin: int
    end: int
    k: int
    nprobe: int
    method: Method
    memory: int


@dataclass(frozen=True, slots=True, eq=False)
class ShardAnswer:
    """Neighbours of a task, nearest first: ``distances`` float32 (n, k), inf if absent; ``values`` uint32 (n, k)."""

    task: ShardTask
    distances: Float32
    values: Uint32


Mask = tuple[tuple[str, bytes], ...]
"""Hidden documents, in hashable form: names of segments, and the bytes of the documents' numbers, int64."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedSearch:
    """Data shared by all tasks of a search: the queries, float32 (n, d), and the mask of the store."""

    queries: Float32
    mask: Mask


def search_shard(shared: SharedSearch, task: ShardTask) -> ShardAnswer:
    """Run a task on a worker. Raises MismatchError if the store has changed since the task was made."""
    kept(_open_searcher.cache_clear)
    searcher = _open_searcher(task.store, task.state, shared.mask).within(task.first, task.last)
    queries = shared.queries[task.begin : task.end]
    neighbours = searcher.search(queries, task.k, task.nprobe, method=task.method, memory=task.memory)
    return ShardAnswer(task, neighbours.distances, neighbours.values.astype(np.uint32))


@lru_cache(maxsize=1)
def _open_searcher(root: str, state: int, mask: Mask) -> OpenIndex:
    store = Datastore(path_of(root))
    if store.manifest.state != state:
        raise MismatchError(f"{root} has changed since the search began (state {state}, now {store.manifest.state})")
    searcher = open_searcher(store.masked({name: np.frombuffer(numbers, np.int64) for name, numbers in mask}))
    store.close()  # the command that searches holds the state; a worker would hold it for its whole lifetime
    return searcher


def search_sharded(
    store: Datastore,
    searcher: OpenIndex,
    queries: Float32,
    k: int,
    nprobe: int,
    *,
    method: Method,
    memory: int,
    runner: Runner,
    advance: Callable[[float], None],
) -> Neighbours:
    """Return the k nearest keys of each query, float32 (n, d), as ``searcher`` does, on the workers of ``runner``.

    ``memory``: bytes for a task's working set; ``advance`` is called with the number of queries processed.
    """
    ranges = list_ranges(searcher.list_sizes(), max(1, runner.workers))
    blocks = [(begin, min(begin + _MOST_QUERIES, len(queries))) for begin in range(0, len(queries), _MOST_QUERIES)]
    root = str(store.root.absolute())
    tasks = [
        ShardTask(root, store.manifest.state, shard, first, last, begin, end, k, nprobe, method, memory)
        for begin, end in blocks
        for shard, (first, last) in enumerate(ranges)
    ]
    merges = {begin: NearestOfShards(end - begin, k) for begin, end in blocks}
    mask = tuple((name, numbers.tobytes()) for name, numbers in store.mask.items())
    for answer in runner.run_shared(search_shard, SharedSearch(queries, mask), tasks):
        merges[answer.task.begin].add(answer.task.shard, answer.distances, answer.values)
        advance((answer.task.end - answer.task.begin) / len(ranges))
    parts = [merges.pop(begin).neighbours() for begin, _ in blocks]
    return Neighbours(np.concatenate([p.distances for p in parts]), np.concatenate([p.values for p in parts]), None)


def list_ranges(sizes: Int64, shards: int) -> list[tuple[int, int]]:
    """Return non-empty ranges ``[first, last)`` of lists with about equally many keys; ``sizes``: keys per list."""
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, shards) / shards) + 1
    bounds = np.unique(np.concatenate([[0], np.minimum(cuts, len(sizes)), [len(sizes)]]))
    return [(int(first), int(last)) for first, last in pairwise(bounds)]


class NearestOfShards:
    """Merges the k nearest of n queries from the answers of shards, which may be added in any order.

    Entries are sorted by a uint64: the bits of the distance, which sort like the distance because it isn't negative,
    followed by the shard and the place in it. Equal distances are thus in the order of the lists, and no two are equal.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._keys = np.full((queries, k), _EMPTY)
        self._values = np.zeros((queries, k), np.uint32)

    def add(self, shard: int, distances: Float32, values: Uint32) -> None:
        """Merge the answer of a shard: float32 and uint32 (n, k), nearest first, inf if absent."""
        place = np.arange(shard * self._k, (shard + 1) * self._k, dtype=np.uint64)
        for block in self._blocks():
            keys = distances[block].view(np.uint32).astype(np.uint64) << _SHIFT | place
            keys[np.isinf(distances[block])] = _EMPTY
            both = np.concatenate([self._keys[block], keys], axis=1)
            kept = np.argpartition(both, self._k - 1, axis=1)[:, : self._k]
            self._keys[block] = np.take_along_axis(both, kept, 1)
            both_values = np.concatenate([self._values[block], values[block]], axis=1)
            self._values[block] = np.take_along_axis(both_values, kept, 1)

    def neighbours(self) -> Neighbours:
        """Return the k nearest, nearest first."""
        distances = np.empty(self._keys.shape, np.float32)
        values = np.empty(self._keys.shape, np.int64)
        for block in self._blocks():
            order = np.argsort(self._keys[block], axis=1)
            keys = np.take_along_axis(self._keys[block], order, 1)
            distances[block] = (keys >> _SHIFT).astype(np.uint32).view(np.float32)
            values[block] = np.take_along_axis(self._values[block], order, 1)
            distances[block][keys == _EMPTY] = np.inf
            values[block][keys == _EMPTY] = ABSENT
        return Neighbours(distances, values, None)

    def _blocks(self) -> Iterator[slice]:
        for begin in range(0, len(self._keys), _ROWS_AT_ONCE):
            yield slice(begin, begin + _ROWS_AT_ONCE)
