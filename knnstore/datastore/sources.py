"""Writing what the documents of a seq2seq segment are translations of, and where each lies."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from knnstore.datastore.appending import ChunkWriter
from knnstore.datastore.arrays import create_array
from knnstore.datastore.documents import SOURCE_TOKENS
from knnstore.datastore.segment import Segment

Int64 = np.ndarray[Any, np.dtype[np.int64]]


def write_sources(segment: Segment, tokens: Int64, blocks: Iterable[Any]) -> list[Path]:
    """Write the sources of all documents, int64 (documents,) ``tokens`` each, and where they lie; return the files."""
    path, offsets = segment.array_path("sources"), segment.array_path("source_offsets")
    files = create_array(path, (int(tokens.sum()),), SOURCE_TOKENS, segment.plan.value_dtype, "values")
    files += create_array(offsets, (len(tokens) + 1,), SOURCE_TOKENS, np.dtype(np.int64), "values")
    writer, places = ChunkWriter(path, SOURCE_TOKENS), ChunkWriter(offsets, SOURCE_TOKENS)
    for block in blocks:
        writer.write(block)
    places.write(np.concatenate([[0], np.cumsum(tokens)]))
    return [*files, *writer.finish(), *places.finish()]
