"""What a score is: numbers for people and for scripts."""

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
    """A token that the store got right and the LM did not, and the neighbour that taught it.

    ``context`` and ``token``: the scored text. ``lm_token`` with ``lm_p`` is the LM's own choice; ``lm_p_token``,
    ``store_p_token`` and ``p_token`` are the token's probabilities by LM, store and mixture. ``taught_by`` is the
    document with the nearest key of that token, ``passage`` what stands before it there.
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
    """Where the time went."""

    lm: float
    search: float
    mix: float


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """The result of scoring a text with an LM and a store.

    ``keys``: those of the store that were searched. ``base`` and ``knn`` are over the documents reported on, and
    ``constant`` is what the mixture's constants alone do where a gate weighs. ``tuned_documents`` and ``tuned_tokens``
    say how many others were tuned on just now; if 0, ``setting_from`` says where the setting is from. ``search`` says
    in words how the neighbours were found, and ``recall`` what the index's self-check measured there (None if exact,
    or unknown). ``overlap``: what of the text the store repeats. ``names``: of the documents, and ``details`` what a
    page shows of them, if one was asked for.
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
        """How much lower the perplexity is with the store, in percent."""
        return gain_percent(self.base, self.knn)

    def to_json(self) -> dict[str, Any]:
        """The object that is printed as JSON."""
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
