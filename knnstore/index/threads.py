"""Sharing out queries to threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import torch

_FEWEST_A_THREAD = 128


@contextmanager
def query_threads(queries: int) -> Iterator[tuple[ThreadPoolExecutor, list[slice]]]:
    """A pool, and the share of the queries for each of its threads: as many as torch uses, fewer for few queries.

    In the pool torch itself uses one thread. The threads share out queries rather than products: most of the time
    goes into picking survivors, which is NumPy's; and two threads of one small product wait for each other, ten
    times longer than it takes, whenever another process wants a core as well.
    """
    threads = torch.get_num_threads()
    count = max(1, min(threads, queries // _FEWEST_A_THREAD))
    shares = [slice(*bounds) for bounds in pairwise(queries * number // count for number in range(count + 1))]
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool, shares
    finally:
        torch.set_num_threads(threads)
