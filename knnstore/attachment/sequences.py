"""The text that each sequence of a forward pass has so far: what the cache and the exact matches look back at."""

from dataclasses import dataclass

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.lm.reading import ForwardPass
from knnstore.mixing.cache import cache_neighbours
from knnstore.neighbours import ABSENT, Neighbours
from knnstore.suffix_array.contexts import DEPTH, contexts_of


@dataclass(frozen=True, slots=True, eq=False)
class SequenceText:
    """The last t positions of a sequence that hold text, without padding.

    ``keys``: float32 (t, d). ``ids``: int64 (t,). ``first``: int64 (t,), where each position's document begins.
    ``kept``: int64 (n,), where the positions that return logits stand among them; meaningless for padding.
    """

    keys: Float32
    ids: Int64
    first: Int64
    kept: Int64

    def pairs(self, columns: Int64, size: int) -> Neighbours:
        """Return the last ``size`` pairs before some of the kept positions, with their distances."""
        values = np.append(self.ids[1:], ABSENT)
        return cache_neighbours(self.keys, values, self.first, self.kept[columns], size)

    def contexts(self, columns: Int64, bos: int, nothing: int) -> Int64:
        """Return the last tokens up to some of the kept positions: int64 (columns, DEPTH), as ``contexts_of`` does."""
        queries = self.kept[columns]
        first = self.first[queries]
        contexts: Int64 = contexts_of(self.ids, first + (self.ids[first] == bos), queries + 1, nothing)
        return contexts


def sequence_texts(forward: ForwardPass, size: int) -> list[SequenceText]:
    """Return the text of each sequence of a pass, as far back as a cache of ``size`` pairs and the matches look.

    Position ids that go back begin another document. Raises ModelError for a pass that can't be followed.
    """
    read_keys, read_ids = forward.read()  # (b, L, d), (b, L)
    read, passed = read_ids.shape[1], forward.keys.shape[1]
    begin = max(0, read - passed - max(size, DEPTH))
    keys, ids, kept = (part.cpu().numpy() for part in (read_keys[:, begin:], read_ids[:, begin:], forward.kept))
    text = forward.text(ids.shape[1]).cpu().numpy()  # (b, L − begin)
    packed = forward.places if read == passed and forward.places is not None and forward.places.dim() == 2 else None
    result = []
    for line, there in enumerate(text):
        place = np.cumsum(there) - 1  # of each position among those that hold text
        starts = np.zeros(len(there), bool)
        if packed is not None:
            positions = packed[line % len(packed)].cpu().numpy()
            starts[1:] = positions[1:] <= positions[:-1]
        first = np.maximum.accumulate(np.where(starts[there], np.arange(there.sum()), 0))
        result.append(SequenceText(keys[line][there], ids[line][there], first, place[len(there) - passed + kept]))
    return result
