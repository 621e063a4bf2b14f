"""The search of many queries on a cluster: the lists shared out by ranges, each range's k nearest merged here.

The answer is that of one machine, bit for bit. A distance doesn't depend on what else is searched at the time, each
range gives its k nearest in the order in which one machine would have met them, and among equal distances the earlier
list goes first, as it does there.
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

_MOST_QUERIES = 8192  # a task: with k = 1024 its answer has 64 MB
_ROWS_AT_ONCE = 512
_EMPTY = np.uint64(2**64 - 1)
_SHIFT = np.uint64(32)


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Search queries ``[begin, end)`` of those that are shared, in lists ``[first, last)`` of a state of a store."""

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
    """A task's neighbours, nearest first: ``distances`` float32 (n, k), inf where there is none; ``values`` uint32."""

    task: ShardTask
    distances: Float32
    values: Uint32


Mask = tuple[tuple[str, bytes], ...]
"""Documents that are hidden: segments' names, and the bytes of the documents' numbers, int64. It can be hashed."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedSearch:
    """What all tasks of a search need: the queries, float32 (n, d), and the store's mask."""

    queries: Float32
    mask: Mask


def search_shard(shared: SharedSearch, task: ShardTask) -> ShardAnswer:
    """What a worker runs. Raises MismatchError if the store has changed since the task was made."""
    kept(_open_searcher.cache_clear)
    searcher = _open_searcher(task.store, task.state, shared.mask).within(task.first, task.last)
    mine = shared.queries[task.begin : task.end]
    found = searcher.search(mine, task.k, task.nprobe, method=task.method, memory=task.memory)
    return ShardAnswer(task, found.distances, found.values.astype(np.uint32))


@lru_cache(maxsize=1)
def _open_searcher(root: str, state: int, mask: Mask) -> OpenIndex:
    store = Datastore(path_of(root))
    if store.manifest.state != state:
        raise MismatchError(f"{root} has changed since the search began (state {state}, now {store.manifest.state})")
    searcher = open_searcher(store.masked({name: np.frombuffer(numbers, np.int64) for name, numbers in mask}))
    store.close()  # whoever asked holds the state while it needs it; a worker would hold it for as long as it lives
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
    """The k nearest of each query, float32 (n, d), as ``searcher`` would find them, by the workers of ``runner``.

    ``memory``: bytes for a task's working set; ``advance`` is told of (parts of) queries.
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
    found = [merges.pop(begin).neighbours() for begin, _ in blocks]
    return Neighbours(np.concatenate([f.distances for f in found]), np.concatenate([f.values for f in found]), None)


def list_ranges(sizes: Int64, shards: int) -> list[tuple[int, int]]:
    """Ranges ``[first, last)`` of lists with about as many keys each, none of them empty; ``sizes``: keys a list."""
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, shards) / shards) + 1
    bounds = np.unique(np.concatenate([[0], np.minimum(cuts, len(sizes)), [len(sizes)]]))
    return [(int(first), int(last)) for first, last in pairwise(bounds)]


class NearestOfShards:
    """The k nearest of n queries out of the answers of shards, which may be added in any order.

    An entry's key is a uint64: the distance's bits, which sort like the distance since it isn't negative, above the
    shard and its place there. So equal distances stay in the order of the lists, and every key is another.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._keys = np.full((queries, k), _EMPTY)
        self._values = np.zeros((queries, k), np.uint32)

    def add(self, shard: int, distances: Float32, values: Uint32) -> None:
        """Merge a shard's answer: float32 and uint32 (n, k), nearest first, inf where there is none."""
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
        """The k nearest, nearest first."""
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
