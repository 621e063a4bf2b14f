"""Choose the mixture of an LM with a store: as given, as tuned, or a cautious default."""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from knnstore.attachment.search import Search
from knnstore.datastore.store import Datastore
from knnstore.errors import UsageError
from knnstore.mixing.knn import typical_spread
from knnstore.mixing.mixture import Mixture
from knnstore.mixing.setting import Setting
from knnstore.scoring.options import DEFAULT_K
from knnstore.scoring.tuned_record import TunedRecord, load_tuned
from knnstore.suffix_array.build import open_suffixes
from knnstore.suffix_array.search import Suffixes
from knnstore.wording import command

T = TypeVar("T")

# The published weight of a store (Khandelwal et al. 2020): cautious if the domain differs.
_LAMBDA = 0.25
# Temperature as a share of d_k − d_1, the typical spread of distances: the result of tuning on novels; on
# documentation, tuning results in half of it.
_SPREADS = 0.25
_MOST_QUERIES = 64


@dataclass(frozen=True, slots=True, eq=False)
class AttachedMixture:
    """The mixture of an LM with a store, with what it needs from the store besides the search.

    ``source``: origin of the mixture as text. ``suffixes``: the exact-match memory, if the mixture uses it.
    """

    mixture: Mixture
    source: str = "as given"
    suffixes: Suffixes | None = None

    @property
    def setting(self) -> Setting:
        """Return the constants of the mixture."""
        return self.mixture.setting


def choose_mixture(
    store: Datastore, search: Search, *, k: int | None, lambda_: float | None, temperature: float | None
) -> AttachedMixture:
    """Return the mixture to use with a store: as given, else as tuned, else a cautious default.

    If a part is given, the rest are constants, without a cache and exact matches. Raises UsageError for invalid values.
    """
    require_setting(Setting(_or(k, 1), _or(lambda_, 0.0), _or(temperature, 1.0)))
    if k is not None and lambda_ is not None and temperature is not None:
        return AttachedMixture(Mixture(Setting(min(k, store.live_rows), lambda_, temperature)))
    record = load_tuned(store)
    if record is not None and (k, lambda_, temperature) == (None, None, None):
        return _stored_mixture(store, record)
    if record is not None and k in (None, record.alone.k):
        default, source = record.alone, f"as {command('tune')} stored it"
        if record.gate is not None or record.setting.cache:
            source += ", without its gate and cache, since a part of the mixture is given"
    else:
        default, source = cautious_setting(store, search, k), _cautious_words(lambda_, temperature)
    if lambda_ is not None and temperature is not None:
        source = "as given"
    setting = Setting(default.k, _or(lambda_, default.lambda_), _or(temperature, default.temperature))
    return AttachedMixture(Mixture(setting), source)


def _stored_mixture(store: Datastore, record: TunedRecord) -> AttachedMixture:
    mixture, source = record.mixture, f"as {command('tune')} stored it"
    suffixes = open_suffixes(store) if mixture.needs_matches else None
    if mixture.needs_matches and suffixes is None:
        source += f", without its gate, which needs the exact-match memory: run {command('suffixes')}"
        mixture = mixture.constant
    return AttachedMixture(mixture, source, suffixes)


def _cautious_words(lambda_: float | None, temperature: float | None) -> str:
    parts = [
        words
        for words, given in (("λ as published", lambda_), ("temperature from the spread of distances", temperature))
        if given is None
    ]
    return f"{' and '.join(parts)}; {command('tune')} finds better ones"


def cautious_setting(store: Datastore, search: Search, k: int | None) -> Setting:
    """Return a setting that is unlikely to do harm.

    k is 1024 and λ the published 0.25. The temperature depends on the scale of the keys: it is a share of the spread of
    distances of held-out keys.
    """
    k = min(k or DEFAULT_K, store.live_rows)
    queries = np.concatenate([segment.queries() for segment in store.segments])
    if not len(queries):  # nothing is held out, so stored keys are used, though each one is its own first neighbour
        queries = _stored_keys(store)
    chosen = queries[np.unique(np.linspace(0, len(queries) - 1, _MOST_QUERIES).astype(np.int64))]
    spread = typical_spread(search(np.ascontiguousarray(chosen), k).distances)
    return Setting(k, _LAMBDA, float(f"{_SPREADS * spread:.3g}"))


def _stored_keys(store: Datastore) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    segment = store.segments[0]
    return segment.codec.decode(segment.keys(0, min(segment.rows, _MOST_QUERIES)))


def require_setting(setting: Setting) -> None:
    """Raise UsageError for a setting with invalid values."""
    k, weight, temperature = setting.k, setting.lambda_, setting.temperature
    if not 1 <= k <= 2**16:
        raise UsageError(f"k is {k}: give a number of neighbours from 1 to {2**16}")
    if not 0 <= weight < 1:
        raise UsageError(f"lambda_ is {weight:g}: the store's weight is at least 0 and below 1")
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature is {temperature:g}: give a finite number above 0")


def _or(given: T | None, default: T) -> T:
    return default if given is None else given
