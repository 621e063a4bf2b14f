"""``knnstore tune``: the best mixture for a file of neighbours, without the LM and without a search."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from knnstore.datastore.locking import writing
from knnstore.datastore.store import Datastore
from knnstore.errors import UsageError
from knnstore.interpolation import mix, mix_sources
from knnstore.perplexity import Likelihood, by_document
from knnstore.progress import Reporter
from knnstore.score.fitting import fit_mixture, gate_lesson, gather
from knnstore.score.mixture import Mixture
from knnstore.score.options import ScoreOptions
from knnstore.score.result import Setting
from knnstore.score.saved import SavedNeighbours
from knnstore.score.training import gated_log_p
from knnstore.score.tuned import Measured, TunedRecord, require_same_keys, save_tuned
from knnstore.score.tuning import Evidence, choose, surface
from knnstore.suffixes.build import open_suffixes
from knnstore.suffixes.search import Suffixes

FOLDS = 5


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What was found: the record, and how good each part of it is.

    ``base``, ``constant`` and ``gated`` (None without a gate): each document's likelihood by what was tuned on the
    others. ``documents``: how many; ``parts``: into how many pieces a few documents were cut to be kept out in turn
    (0: whole documents were). ``ks`` and ``temperatures`` with ``perplexities`` and ``lambdas`` (ks × temperatures):
    the whole grid, tuned on all. ``saved``: whether the store has it now.
    """

    record: TunedRecord
    store: str
    base: Likelihood
    constant: Likelihood
    gated: Likelihood | None
    documents: int
    parts: int
    ks: tuple[int, ...]
    temperatures: tuple[float, ...]
    perplexities: tuple[tuple[float, ...], ...]
    lambdas: tuple[tuple[float, ...], ...]
    saved: bool


def tune(
    saved: SavedNeighbours,
    store: Datastore,
    options: ScoreOptions,
    reporter: Reporter | None = None,
    *,
    keep: bool = True,
) -> TuneReport:
    """The best mixture for the saved neighbours, measured by keeping documents out in turn, and stored with the store.

    ``options`` says what of the mixture is given, and whether to train a gate (``adaptive``; None: yes, and keep it if
    it is better than constants for documents that it hasn't seen). The gate asks the store's exact-match memory, if it
    has one. ``keep`` False: nothing is stored.

    Raises UsageError for a file without tokens, MismatchError if the neighbours are of another LM's keys,
    LockedError if another process is writing the store.
    """
    reporter = reporter or Reporter()
    with writing(store.root, reporter.say) if keep else nullcontext():
        return _tune(saved, store, options, reporter, keep=keep)


def _tune(
    saved: SavedNeighbours, store: Datastore, options: ScoreOptions, reporter: Reporter, *, keep: bool
) -> TuneReport:
    facts = saved.facts
    require_same_keys(store, facts.model.weights, facts.layer, str(saved.path))
    evidence = gather_saved(saved, options, open_suffixes(store), reporter)
    fold, parts = folds_of(evidence.column("document"))
    with reporter.bar("tune", 2 * FOLDS, "fits") as advance:
        constant, gated = _kept_out(evidence, options, fold, advance)
        mixture = fit_mixture(evidence, options)
        advance(FOLDS)
    log_lm = evidence.column("log_lm")
    gate = mixture.gate
    if gate is not None and options.adaptive is None and (gated is None or gated.mean() <= constant.mean()):
        gate = None
    base, constant_l, gated_l = (
        None if log_p is None else _likelihood(saved, evidence, log_p) for log_p in (log_lm, constant, gated)
    )
    assert base is not None and constant_l is not None
    measured = Measured(base.perplexity, constant_l.perplexity, _perplexity(gated_l))
    alone = choose(evidence.grid, log_lm, evidence.column("knn"), options.lambda_)
    record = _record(saved, replace(mixture, gate=gate), alone, measured)
    if keep:
        save_tuned(store, record)
    losses, lambdas = surface(log_lm, evidence.column("knn"), options.lambda_)
    return TuneReport(
        record,
        facts.store,
        base,
        constant_l,
        gated_l,
        len(facts.names),
        parts,
        evidence.grid.ks,
        evidence.grid.temperatures,
        tuple(tuple(math.exp(loss) for loss in line) for line in losses),
        tuple(tuple(float(value) for value in line) for line in lambdas),
        keep,
    )


def gather_saved(
    saved: SavedNeighbours, options: ScoreOptions, suffixes: Suffixes | None, reporter: Reporter
) -> Evidence:
    """All that a mixture can be tuned from. Raises UsageError for a file without tokens."""
    evidence: Evidence | None = None
    with reporter.bar("read", len(saved), "tokens") as advance:
        for block in saved.blocks(suffixes):
            if evidence is None:
                evidence = gather(options, saved.facts.k, block, gate=options.adaptive is not False)
                evidence.cache_size = saved.facts.cache
            evidence.add(block)
            advance(len(block.document))
    if evidence is None:
        raise UsageError(f"{saved.path} holds no tokens: score a text with --save-neighbours first")
    return evidence


def folds_of(document: Any) -> tuple[Any, int]:
    """The fold that each token is kept out in, int64 (n,), and the pieces that documents were cut into, if they were.

    Whole documents where there are enough of them; else contiguous pieces, which is less strict: the pieces beside one
    were learned from.
    """
    names = np.unique(document)
    if len(names) >= FOLDS:
        return np.searchsorted(names, document) % FOLDS, 0
    return np.arange(len(document)) * FOLDS // len(document), FOLDS


def _kept_out(evidence: Evidence, options: ScoreOptions, fold: Any, advance: Any) -> tuple[Any, Any]:
    """ln p of each token by constants, and by a gate if there is one, that were fitted to the other folds."""
    log_lm, knn = evidence.column("log_lm"), evidence.column("knn")
    constant, gated = np.empty(len(log_lm)), np.empty(len(log_lm))
    has_gate = True
    for number in range(FOLDS):
        here, others = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        if not len(here) or not len(others):
            constant[here] = gated[here] = log_lm[here]
            continue
        mixture = fit_mixture(evidence, options, others)
        constant[here] = _constant_log_p(evidence, mixture, here, log_lm[here], knn)
        if mixture.gate is None:
            has_gate = False
        else:
            lesson, _ = gate_lesson(evidence, mixture.setting, here)
            gated[here] = gated_log_p(mixture.gate, lesson)
        advance(1)
    return constant, gated if has_gate else None


def _constant_log_p(evidence: Evidence, mixture: Mixture, rows: Any, log_lm: Any, knn: Any) -> Any:
    setting, grid = mixture.setting, evidence.grid
    store = knn[rows, grid.ks.index(setting.k), grid.temperatures.index(setting.temperature)]
    if not setting.cache:
        return mix(log_lm, store, setting.lambda_)
    cache = evidence.column("cache")[rows, evidence.cache_temperatures.index(setting.cache_temperature)]
    return mix_sources(log_lm, np.stack([store, cache], axis=1), [setting.lambda_, setting.cache_weight])


def _likelihood(saved: SavedNeighbours, evidence: Evidence, log_p: Any) -> Likelihood:
    facts = saved.facts
    nats = by_document(evidence.column("document"), log_p, len(facts.names))
    return Likelihood(nats, np.array(facts.tokens), np.array(facts.bytes))


def _perplexity(likelihood: Likelihood | None) -> float | None:
    return None if likelihood is None else likelihood.perplexity


def _record(saved: SavedNeighbours, mixture: Mixture, alone: Setting, measured: Measured) -> TunedRecord:
    facts = saved.facts
    return TunedRecord(
        version=1,
        weights=facts.model.weights,
        layer=facts.layer,
        rows=facts.rows,
        search=facts.search,
        text=facts.text,
        tokens=int(sum(facts.tokens)),
        documents=tuple(dict.fromkeys(facts.digests)),
        setting=mixture.setting,
        alone=alone,
        spread=mixture.spread,
        gate=mixture.gate,
        measured=measured,
    )
