"""``knnstore tune``: find and cross-validate the best mixture for saved neighbours, without an LM or a search."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from knnstore.arrays import Float64, Int64
from knnstore.datastore.edits import Edit, editing
from knnstore.datastore.store import Datastore
from knnstore.errors import UsageError
from knnstore.mixing.interpolation import mix_sources
from knnstore.mixing.mixture import Mixture
from knnstore.mixing.setting import Setting
from knnstore.perplexity import Likelihood, by_document
from knnstore.progress import Reporter
from knnstore.scoring.best_mixture import best_mixture, gate_lesson
from knnstore.scoring.best_setting import choose, surface
from knnstore.scoring.gate_training import gated_log_p
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.saved import SavedNeighbours
from knnstore.scoring.tuned_record import Measured, TunedRecord, require_same_keys, save_tuned
from knnstore.scoring.tuning_table import TuningTable
from knnstore.suffix_array.build import open_suffixes
from knnstore.suffix_array.search import Suffixes
from knnstore.wording import option

FOLDS = 5


@dataclass(frozen=True, slots=True)
class TuneReport:
    """The result of tuning: the record, and how good each part of it is.

    ``base``, ``constant`` and ``gated`` (None without a gate): likelihood of each document under the mixture tuned on
    the others. ``documents``: their number; ``parts``: number of pieces if there were too few documents to hold out
    whole ones (else 0). ``ks`` and ``temperatures`` with ``perplexities`` and ``lambdas`` (ks × temperatures): the
    whole grid, tuned on all documents. ``saved``: whether the record was stored.
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
    """Find the best mixture for saved neighbours, measure it by cross-validation over documents, and store it.

    ``options``: the given parts of the mixture, and whether to train a gate (``adaptive``; None: train it, and keep it
    if it beats the constants on unseen documents). The gate also uses the store's exact-match memory, if it has one.
    ``keep`` False: store nothing.

    Raises UsageError for a file without tokens, MismatchError if the neighbours are keys of another LM, LockedError if
    another process is writing the store.
    """
    reporter = reporter or Reporter()
    with editing(store.root, reporter.say) if keep else nullcontext() as edit:
        return _tune(saved, store, options, reporter, edit)


def _tune(
    saved: SavedNeighbours, store: Datastore, options: ScoreOptions, reporter: Reporter, edit: Edit | None
) -> TuneReport:
    facts = saved.facts
    require_same_keys(store, facts.model.weights, facts.layer, str(saved.path))
    table = gather_saved(saved, options, open_suffixes(store), reporter)
    fold, parts = folds_of(table["document"])
    with reporter.bar("tune", 2 * FOLDS, "fits") as advance:
        constant, gated = _kept_out(table, options, fold, advance)
        mixture = best_mixture(table, options)
        advance(FOLDS)
    log_lm = table["log_lm"]
    gate = mixture.gate
    if gate is not None and options.adaptive is None and (gated is None or gated.mean() <= constant.mean()):
        gate = None
    base, constant_l, gated_l = (
        None if log_p is None else _likelihood(saved, table, log_p) for log_p in (log_lm, constant, gated)
    )
    assert base is not None and constant_l is not None
    measured = Measured(base.perplexity, constant_l.perplexity, _perplexity(gated_l))
    without_cache = choose(table.grid, log_lm, table["knn"], options.lambda_)
    record = _record(saved, replace(mixture, gate=gate), without_cache, measured)
    if edit is not None:
        save_tuned(edit, record)
    losses, lambdas = surface(log_lm, table["knn"], options.lambda_)
    return TuneReport(
        record,
        facts.store,
        base,
        constant_l,
        gated_l,
        len(facts.names),
        parts,
        table.grid.ks,
        table.grid.temperatures,
        tuple(tuple(math.exp(loss) for loss in line) for line in losses),
        tuple(tuple(float(value) for value in line) for line in lambdas),
        edit is not None,
    )


def gather_saved(
    saved: SavedNeighbours, options: ScoreOptions, suffixes: Suffixes | None, reporter: Reporter
) -> TuningTable:
    """Return the table that mixtures are tuned on. Raises UsageError for a file without tokens."""
    table: TuningTable | None = None
    facts, gate = saved.facts, options.adaptive is not False
    with reporter.bar("read", len(saved), "tokens") as advance:
        for block in saved.blocks(suffixes):
            table = table or TuningTable.for_blocks_like(block, options, facts.k, cache_size=facts.cache, gate=gate)
            table.add(block)
            advance(len(block.document))
    if table is None:
        raise UsageError(f"{saved.path} holds no tokens: score a text with {option('save_neighbours')} first")
    return table


def folds_of(document: Int64) -> tuple[Int64, int]:
    """Return the fold of each token, int64 (n,), and the number of pieces if documents are divided.

    Folds hold whole documents (0 pieces) if there are enough; else contiguous pieces, which is a weaker test, because
    the neighbouring pieces of the same document are trained on.
    """
    names = np.unique(document)
    if len(names) >= FOLDS:
        return np.searchsorted(names, document) % FOLDS, 0
    return np.arange(len(document)) * FOLDS // len(document), FOLDS


def _kept_out(
    table: TuningTable, options: ScoreOptions, fold: Int64, advance: Callable[[float], None]
) -> tuple[Float64, Float64 | None]:
    """Return ln p of each token by constants, and by a gate if there is one, fitted to the other folds.

    The whole procedure is cross-validated: in every fold the constants are chosen again and a gate is trained again
    (with early stopping on documents of the other folds), so that no token is predicted by a mixture fitted to it.
    The stored mixture is fitted to all tokens; these figures estimate its quality on new documents.
    """
    log_lm = table["log_lm"]
    constant, gated = np.empty(len(log_lm)), np.empty(len(log_lm))
    has_gate = True
    for number in range(FOLDS):
        held_out, others = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        if not len(held_out) or not len(others):
            constant[held_out] = gated[held_out] = log_lm[held_out]
            continue
        mixture = best_mixture(table, options, others)
        constant[held_out] = _constant_log_p(table, mixture.setting, held_out)
        if mixture.gate is None:
            has_gate = False
        else:
            lesson, _ = gate_lesson(table, mixture.setting, held_out)
            gated[held_out] = gated_log_p(mixture.gate, lesson)
        advance(1)
    return constant, gated if has_gate else None


def _constant_log_p(table: TuningTable, setting: Setting, rows: Int64) -> Float64:
    grid, weights = table.grid, [setting.lambda_]
    knn = table["knn"][rows, grid.ks.index(setting.k), grid.temperatures.index(setting.temperature)]
    sources = [knn]
    if setting.cache:
        sources.append(table["cache"][rows, table.cache_temperatures.index(setting.cache_temperature)])
        weights.append(setting.cache_weight)
    return mix_sources(table["log_lm"][rows], np.stack(sources, axis=1), weights)


def _likelihood(saved: SavedNeighbours, table: TuningTable, log_p: Float64) -> Likelihood:
    facts = saved.facts
    nats = by_document(table["document"], log_p, len(facts.names))
    return Likelihood(nats, np.array(facts.tokens), np.array(facts.bytes))


def _perplexity(likelihood: Likelihood | None) -> float | None:
    return None if likelihood is None else likelihood.perplexity


def _record(saved: SavedNeighbours, mixture: Mixture, without_cache: Setting, measured: Measured) -> TunedRecord:
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
        alone=without_cache,
        spread=mixture.spread,
        gate=mixture.gate,
        measured=measured,
    )
