"""Where a chunk of the merged lists cuts through one list: in all runs at once, from a few rows around the cut.

Within a list every run is in the order of the same hash, which spreads rows evenly whatever they are. So of the rows of
a run that lie before the cut the number is known but for a few standard deviations, and only the rows within these
are read: a linear pass over the runs for each chunk, however long the list.
"""

from collections.abc import Callable

import numpy as np

from knnstore.arrays import Int64, Uint64
from knnstore.errors import CorruptStoreError

ReadHashes = Callable[[int, int, int], Uint64]
"""``(run, begin, end)``: the hashes of a run's rows ``[begin, end)``, ascending: uint64."""

_REACH, _FEWEST = 4.0, 16  # standard deviations, and rows at least, that are read to either side of the guess


def cut_list(begins: Int64, ends: Int64, rank: int, read: ReadHashes) -> Int64:
    """Where each run's part of one list is cut so that ``rank`` rows of the list lie before the cuts: int64 (runs,).

    The list is rows ``[begins[r], ends[r])`` of each run r; no hash occurs twice. Raises CorruptStoreError if the runs
    don't have that many rows of the list.
    """
    lengths = ends - begins
    total = int(lengths.sum())
    if not 0 <= rank <= total:
        raise CorruptStoreError(f"the runs hold {total} rows of a list that is cut after {rank}")
    if rank in (0, total):
        return begins if rank == 0 else ends
    reach = _REACH
    while True:
        guess, width = lengths * (rank / total), reach * np.sqrt(lengths) + _FEWEST
        firsts = begins + np.clip(np.floor(guess - width), 0, lengths).astype(np.int64)
        lasts = begins + np.clip(np.ceil(guess + width), 0, lengths).astype(np.int64)
        cuts = _cut_within(firsts, lasts, rank - int((firsts - begins).sum()), read)
        if (
            cuts is not None
            and ((cuts > firsts) | (firsts == begins)).all()
            and ((cuts < lasts) | (lasts == ends)).all()
        ):
            return cuts
        reach *= 4  # ends at the latest where the windows are the whole list


def _cut_within(firsts: Int64, lasts: Int64, rank: int, read: ReadHashes) -> Int64 | None:
    """The cuts that leave ``rank`` rows of the windows ``[firsts, lasts)`` before them; None if there are none."""
    parts = [read(run, int(first), int(last)) for run, (first, last) in enumerate(zip(firsts, lasts, strict=True))]
    hashes = np.concatenate(parts)
    if not 0 <= rank <= len(hashes):
        return None
    if rank == len(hashes):
        return lasts
    least = np.partition(hashes, rank)[rank]  # the first that lies behind the cuts
    return firsts + np.array([np.searchsorted(part, least) for part in parts], np.int64)
