"""The text so far of each sequence of a forward pass, for the cache and the exact matches."""

from dataclasses import dataclass

import numpy as np

from knnstore.arrays import Float32, Int64
from knnstore.lm.reading import ForwardPass
from knnstore.mixing.cache import cache_neighbours
from knnstore.neighbours import ABSENT, Neighbours
from knnstore.suffix_array.contexts import DEPTH, contexts_of


@dataclass(frozen=True, slots=True, eq=False)
class SequenceText:
    """The last t text positions of a sequence, without padding.

    ``keys``: float32 (t, d). ``ids``: int64 (t,). ``first``: int64 (t,), where each position's document begins.
    ``kept``: int64 (n,), indices of the positions that return logits; meaningless for padding.
    """

    keys: Float32
    ids: Int64
    first: Int64
    kept: Int64

    def pairs(self, columns: Int64, size: int) -> Neighbours:
        """Return the last ``size`` pairs before the kept positions ``columns``, with their distances."""
        values = np.append(self.ids[1:], ABSENT)
        return cache_neighbours(self.keys, values, self.first, self.kept[columns], size)

    def contexts(self, columns: Int64, bos: int, nothing: int) -> Int64:
        """Return the last tokens up to the kept positions ``columns``, as from ``contexts_of``: int64 (n, DEPTH)."""
        queries = self.kept[columns]
        first = self.first[queries]
        contexts: Int64 = contexts_of(self.ids, first + (self.ids[first] == bos), queries + 1, nothing)
        return contexts


def sequence_texts(forward: ForwardPass, size: int) -> list[SequenceText]:
    """Return the text of each sequence of a pass, as far back as needed for ``size`` pairs and the matches.

    Where position ids don't increase, another document begins. Raises ModelError for an unsupported pass.
    """
    read_keys, read_ids = forward.read()  # (b, L, d), (b, L)
    read, passed = read_ids.shape[1], forward.keys.shape[1]
    begin = max(0, read - passed - max(size, DEPTH))
    keys, ids, kept = (part.cpu().numpy() for part in (read_keys[:, begin:], read_ids[:, begin:], forward.kept))
    text = forward.text(ids.shape[1]).cpu().numpy()  # (b, L − begin)
    packed = forward.places if read == passed and forward.places is not None and forward.places.dim() == 2 else None
    result = []
    for line, is_text in enumerate(text):
        place = np.cumsum(is_text) - 1  # of each position among the text positions
        starts = np.zeros(len(is_text), bool)
        if packed is not None:
            positions = packed[line % len(packed)].cpu().numpy()
            starts[1:] = positions[1:] <= positions[:-1]
        first = np.maximum.accumulate(np.where(starts[is_text], np.arange(is_text.sum()), 0))
        result.append(SequenceText(keys[line][is_text], ids[line][is_text], first, place[len(is_text) - passed + kept]))
    return result
