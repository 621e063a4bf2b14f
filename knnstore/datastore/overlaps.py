"""Find the windows of a text that occur verbatim in a segment, in one pass over its stored tokens."""

from collections.abc import Iterator

import numpy as np

from knnstore.arrays import Int64
from knnstore.datastore.documents import VALUE_CHUNK_ROWS
from knnstore.datastore.rowranges import RowRanges
from knnstore.datastore.segment import Segment
from knnstore.overlap import LENGTH, Shingles


def find_windows(windows: Shingles, segment: Segment, hidden: RowRanges) -> Iterator[tuple[Int64, Int64]]:
    """Yield where windows occur within a document none of whose rows is ``hidden``: ascending rows, and groups.

    int64 (n,) each. Reads ``values`` once, chunk by chunk.
    """
    documents, tail = segment.documents, np.empty(0, segment.plan.value_dtype)
    for begin in range(0, segment.rows, VALUE_CHUNK_ROWS):
        values = np.concatenate([tail, segment.values(begin, min(begin + VALUE_CHUNK_ROWS, segment.rows))])
        for places, groups in windows.find(values):
            rows = places + begin - len(tail)
            shown = documents.locate(rows) == documents.locate(rows + LENGTH - 1)
            shown &= ~hidden.contains(rows)
            yield rows[shown], groups[shown]
        tail = values[-(LENGTH - 1) :]  # windows that end in the next chunk
