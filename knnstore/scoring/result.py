"""The result of scoring, for people and for scripts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knnstore.perplexity import gain_interval, gain_percent

if TYPE_CHECKING:
    from knnstore.mixing.setting import Setting
    from knnstore.perplexity import Interval, Likelihood
    from knnstore.scoring.details import Details
    from knnstore.scoring.overlap import Overlap


@dataclass(frozen=True, slots=True)
class Example:
    """A token that the mixture predicts correctly and the LM doesn't, with the neighbour responsible.

    ``context`` and ``token``: the scored text. ``lm_token`` and ``lm_p``: the LM's own choice. ``lm_p_token``,
    ``store_p_token`` and ``p_token``: probability of the token by LM, store and mixture. ``taught_by``: the document
    with the nearest key of that token; ``passage``: the text before it there.
    """

    context: str
    token: str
    lm_token: str
    lm_p: float
    lm_p_token: float
    store_p_token: float
    p_token: float
    taught_by: str
    passage: str


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds spent in each step."""

    lm: float
    search: float
    mix: float


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """The result of scoring a text with an LM and a store.

    ``keys``: number of keys searched. ``base`` and ``knn``: likelihoods of the reported documents by LM and mixture;
    ``constant``: by the mixture's constants only, if a gate is used. ``tuned_documents`` and ``tuned_tokens``: numbers
    of other documents and tokens on which this run tuned; if 0, ``setting_from`` is the origin of the setting.
    ``search``: how the neighbours were found, as text; ``recall``: of the index's self-check with that method (None if
    exact or unknown). ``overlap``: between text and store. ``names``: of the documents; ``details``: data of a report
    page, if requested.
    """

    store: str
    keys: int
    model: str
    text: str
    documents: int
    tokens: int
    base: Likelihood
    knn: Likelihood
    constant: Likelihood | None
    setting: Setting
    setting_from: str
    nprobe: int | None
    exact: bool
    search: str
    recall: float | None
    tuned_documents: int
    tuned_tokens: int
    tokens_per_second: float
    seconds: Seconds
    examples: tuple[Example, ...]
    overlap: Overlap
    names: tuple[str, ...] = ()
    details: Details | None = None

    @property
    def gain_percent(self) -> float:
        """Return how much lower the perplexity is with the store, in percent."""
        return gain_percent(self.base, self.knn)

    def to_json(self) -> dict[str, Any]:
        """Return the object that is printed as JSON."""
        knn = _summary(self.knn) | {
            "k": self.setting.k,
            "lambda": self.setting.lambda_,
            "temperature": self.setting.temperature,
            "nprobe": self.nprobe,
            "exact": self.exact,
            "adaptive": self.constant is not None,
        }
        if self.setting.cache:
            knn |= {
                "cache": self.setting.cache,
                "cache_weight": self.setting.cache_weight,
                "cache_temperature": self.setting.cache_temperature,
            }
        return {
            "store": self.store,
            "keys": self.keys,
            "model": self.model,
            "text": self.text,
            "documents": self.documents,
            "tokens": self.tokens,
            "base": _summary(self.base),
            "knn": knn,
            "constant": None if self.constant is None else _summary(self.constant),
            "gain_percent": self.gain_percent,
            "gain_percent_interval": _interval(gain_interval(self.base, self.knn)),
            "search": self.search,
            "recall": self.recall,
            "setting_from": self.setting_from,
            "tuned_on": {"documents": self.tuned_documents, "tokens": self.tuned_tokens},
            "overlap": self.overlap.to_json(),
            "tokens_per_second": self.tokens_per_second,
            "seconds": {
                "overlap": self.overlap.seconds,
                "lm": self.seconds.lm,
                "search": self.seconds.search,
                "mix": self.seconds.mix,
            },
        }


def _summary(likelihood: Likelihood) -> dict[str, Any]:
    return {
        "perplexity": likelihood.perplexity,
        "perplexity_interval": _interval(likelihood.perplexity_interval()),
        "bits_per_byte": likelihood.bits_per_byte,
    }


def _interval(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
