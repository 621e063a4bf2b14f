"""Writing a segment's queries: keys of held-out tokens, kept to check an index with."""

from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.arrays import create_array, write_chunk
from knnstore.datastore.segment import Segment

MOST_QUERIES = 1024


def write_queries(segment: Segment, tokens: np.ndarray[Any, Any], queries: np.ndarray[Any, Any]) -> list[Path]:
    """Write up to 1024 queries, float32 (n, d), spread evenly over those given; return the files.

    ``tokens``: int64 (n,), the places of their tokens in the segment's array ``heldout``.
    """
    chosen = np.linspace(0, len(queries) - 1, min(len(queries), MOST_QUERIES), dtype=np.int64)
    files: list[Path] = []
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "queries": queries[chosen].astype(np.float32),
        "query_tokens": tokens[chosen].astype(np.int64),
    }
    for name, array in arrays.items():
        path = segment.array_path(name)
        files += create_array(path, array.shape, max(1, len(array)), array.dtype, "none")
        if len(array):
            files.append(write_chunk(path, 0, array))
    return list(dict.fromkeys(files))
