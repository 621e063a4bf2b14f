"""k, λ and temperature for who gives none."""

import numpy as np

from knnstore.attachment.search import Search
from knnstore.datastore.store import Datastore
from knnstore.score.options import DEFAULT_K
from knnstore.score.result import Setting
from knnstore.score.tuning import typical_spread

# The published weight of a store (Khandelwal et al. 2020): cautious where the domain is another one.
_LAMBDA = 0.25
# Of d_k − d_1, the typical spread of distances: about where tuning ends on books and on documentation.
_SPREADS = 0.125
_MOST_QUERIES = 64


def default_setting(store: Datastore, search: Search, k: int | None = None) -> tuple[Setting, str]:
    """A setting that does no harm, and in words where it comes from.

    k is 1024, λ the published 0.25; the temperature, which depends on the scale of the keys, is a share of the spread
    of distances of held-out keys. Tuning finds better ones.
    """
    k = min(k or DEFAULT_K, store.rows)
    queries = np.concatenate([segment.queries() for segment in store.segments])
    if not len(queries):  # nothing is held out: stored keys, less the first neighbour, which is the key itself
        queries = _stored_keys(store)
    chosen = queries[np.unique(np.linspace(0, len(queries) - 1, _MOST_QUERIES).astype(np.int64))]
    spread = typical_spread(search(np.ascontiguousarray(chosen), k).distances)
    words = "λ as published, the temperature by the spread of the distances; 'knnstore tune' finds better ones"
    return Setting(k, _LAMBDA, float(f"{_SPREADS * spread:.3g}")), words


def _stored_keys(store: Datastore) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    segment = store.segments[0]
    return segment.codec.decode(segment.keys(0, min(segment.rows, _MOST_QUERIES)))
