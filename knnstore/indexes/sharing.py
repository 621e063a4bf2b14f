"""Divide queries among threads and into blocks that fit in memory, and concatenate the results."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch

Block = TypeVar("Block")

_FEWEST_A_THREAD = 128
_FEWEST_PAIRS = 10_000


@contextmanager
def query_threads(queries: int, pairs: float) -> Iterator[tuple[ThreadPoolExecutor, list[slice]]]:
    """Yield a thread pool and the slice of the queries for each thread: as many as torch uses, fewer for few queries.

    ``pairs``: number of (query, key) pairs compared per step. With few pairs, the steps are so short that threads
    would spend more time waiting for each other than working.

    Within the pool, torch uses one thread. Queries are divided rather than products, because NumPy's selection of
    survivors takes most of the time, and because two threads that share a small product wait for each other, for ten
    times as long as it takes, whenever another process needs a core.
    """
    threads = torch.get_num_threads()
    count = max(1, int(min(threads, queries // _FEWEST_A_THREAD, pairs / _FEWEST_PAIRS)))
    shares = [slice(*bounds) for bounds in pairwise(queries * number // count for number in range(count + 1))]
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool, shares
    finally:
        torch.set_num_threads(threads)


def block_sizes(count: int, bytes_each: int, memory: int) -> list[tuple[int, int]]:
    """Return even blocks ``[begin, end)`` of ``count`` queries that fit in ``memory`` bytes; at least one block."""
    blocks = max(1, -(-count // max(1, memory // bytes_each)))
    return list(pairwise(count * number // blocks for number in range(blocks + 1)))


def concatenate(blocks: list[Block]) -> Block:
    """Return the ``Candidates`` or ``Neighbours`` of consecutive blocks of queries as one."""
    first: Any = blocks[0]
    if len(blocks) == 1:
        return blocks[0]
    columns = [[getattr(block, field.name) for block in blocks] for field in fields(first)]
    whole: Block = type(first)(*(None if column[0] is None else np.concatenate(column) for column in columns))
    return whole
