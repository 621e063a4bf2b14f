"""Find where a chunk of the merged lists cuts one list, in all runs at once, from a few rows around the cut.

Within a list, every run is sorted by the same hash, which is distributed evenly. If ``rank`` of the list's ``total``
rows are before the cut, so are about rank / total of each run's rows, to within a few standard deviations. Only the
rows in this window are read, however long the list::

    run 0   |.............[===x==]...............|      [ ]: window, around rank / total of the run's rows
    run 1   |......[=x==].......|                         x: cut, between hashes below and above the same value
"""

from collections.abc import Callable

import numpy as np

from knnstore.arrays import Int64, Uint64
from knnstore.errors import CorruptStoreError

ReadHashes = Callable[[int, int, int], Uint64]
"""``(run, begin, end)``: the hashes of a run's rows ``[begin, end)``, ascending: uint64."""

_REACH, _FEWEST = 4.0, 16  # standard deviations, and additional rows, that are read on either side of the guess


def cut_list(begins: Int64, ends: Int64, rank: int, read: ReadHashes) -> Int64:
    """Return where each run's part of a list is cut so that ``rank`` rows are before the cuts: int64 (runs,).

    The list consists of rows ``[begins[r], ends[r])`` of each run r; no hash occurs twice. Raises CorruptStoreError if
    the runs have fewer rows of the list.
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
        # a cut at the edge of a window may belong outside it, unless the run's part of the list ends there
        if (
            cuts is not None
            and ((cuts > firsts) | (firsts == begins)).all()
            and ((cuts < lasts) | (lasts == ends)).all()
        ):
            return cuts
        reach *= 4  # terminates at the latest when the windows contain the whole list


def _cut_within(firsts: Int64, lasts: Int64, rank: int, read: ReadHashes) -> Int64 | None:
    """Return the cuts with ``rank`` rows of the windows ``[firsts, lasts)`` before them; None if there are none."""
    parts = [read(run, int(first), int(last)) for run, (first, last) in enumerate(zip(firsts, lasts, strict=True))]
    hashes = np.concatenate(parts)
    if not 0 <= rank <= len(hashes):
        return None
    if rank == len(hashes):
        return lasts
    least = np.partition(hashes, rank)[rank]  # the smallest hash after the cuts
    return firsts + np.array([np.searchsorted(part, least) for part in parts], np.int64)
