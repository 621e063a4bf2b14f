"""Search for a few queries by PQ codes: for keys so wide, or lists so long, that one query can't read all keys.

The codes of the probed lists are scanned with one table per list (asymmetric distances, Jégou et al. 2011). Then only
the keys of the best candidates are read, for their exact distances.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from knnstore.arrays import Float32, Int64
from knnstore.indexes.compute.stored import Candidates
from knnstore.indexes.ivfpq.batch import Batch, Lists
from knnstore.indexes.ivfpq.lists import SegmentLists
from knnstore.indexes.ivfpq.quantiser import PQ_LEVELS, Quantiser
from knnstore.indexes.ivfpq.rerank import rerank_exactly
from knnstore.neighbours import ABSENT, Neighbours


def look_up_codes(batch: Batch, lists: Lists, k: int, rerank: int, *, rows: bool) -> Neighbours:
    """Return the k nearest of the ``rerank`` × k keys with the nearest codes in the lists that each query probes.

    ``lists``: lists of codes. ``rows``: whether to return the neighbours' row numbers.
    """
    shape = (len(batch), rerank * k)
    far, values, places = np.full(shape, np.inf, np.float32), np.full(shape, ABSENT, np.int64), np.full(shape, ABSENT)
    for line, (query, probed) in enumerate(zip(batch.queries, batch.probed, strict=True)):
        numbers = np.sort(probed)
        for number in numbers.tolist():
            _read_ahead(lists.parts, number)
        tables = _tables(query, numbers, lists.quantiser)
        scans = [
            _scan(part, *part.bounds(number), table)
            for number, table in zip(numbers.tolist(), tables, strict=True)
            for part in lists.parts
        ]
        distances, of_values, of_places = (np.concatenate(column) for column in zip(*scans, strict=True))
        count = min(len(distances), shape[1])
        nearest = np.argpartition(distances, count - 1)[:count] if count else np.empty(0, np.int64)
        far[line, :count], values[line, :count] = distances[nearest], of_values[nearest]
        places[line, :count] = of_places[nearest]
    return rerank_exactly(batch.queries, Candidates(far, values, places), k, lists.parts, rows=rows)


def _read_ahead(parts: Sequence[SegmentLists], number: int) -> None:
    """Ask the operating system to read the codes of a list in the background."""
    for part in parts:
        begin, end = part.bounds(number)
        if begin < end:
            part.codes.will_need(begin, end)


def _tables(query: Float32, numbers: Int64, quantiser: Quantiser) -> torch.Tensor:
    """Return squared distances of each part of the query − centroid to each codeword: (lists, bytes · 256).

    The distance from the query to a key is the sum of the entries that the bytes of the key's code select.
    """
    codebooks = torch.from_numpy(quantiser.codebooks)  # (m, 256, s)
    whole = torch.from_numpy(query - quantiser.centroids[numbers])  # (lists, d)
    coded = whole if quantiser.axes is None else whole @ torch.from_numpy(quantiser.axes)
    local = coded.view(len(numbers), len(codebooks), -1).transpose(0, 1)  # (m, lists, s)
    squares = local.square().sum(2)[:, :, None] + codebooks.square().sum(2)[:, None]
    # in dimensions that the rotation drops, keys count as equal to their centroid
    squares += (whole.square().sum(1) - coded.square().sum(1))[:, None] / len(codebooks)
    tables = torch.baddbmm(squares, local, codebooks.transpose(1, 2), alpha=-2)  # (m, lists, 256)
    return tables.transpose(0, 1).reshape(len(numbers), -1)


def _scan(part: SegmentLists, begin: int, end: int, table: torch.Tensor) -> tuple[Float32, np.ndarray[Any, Any], Int64]:
    """Return distances, values, and places in list order over all segments, of rows that aren't hidden."""
    codes = torch.from_numpy(part.codes.rows(begin, end)).to(torch.int32)
    codes += torch.arange(codes.shape[1], dtype=torch.int32) * PQ_LEVELS
    distances = table[codes.flatten()].view(codes.shape).sum(1).numpy()  # for an empty list too
    hidden = part.kept(begin, end)
    kept = np.arange(end - begin) if hidden is None else hidden
    return distances[kept], part.values.rows(begin, end)[kept], kept + begin + part.first_row
