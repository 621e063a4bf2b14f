"""The scoring job: open, compare fingerprints, tune on one half, report on the other."""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from knnstore.datastore.store import Datastore
from knnstore.errors import ResourceError
from knnstore.interpolation import mix
from knnstore.lm.forward import KeyModel, key_model
from knnstore.lm.matching import require_same_model
from knnstore.lm.spec import LmSpec, default_model
from knnstore.neighbours import target_probabilities
from knnstore.perplexity import Likelihood, by_document
from knnstore.progress import Reporter
from knnstore.score.examples import Candidate, best_candidates, candidates, explain, whole_words
from knnstore.score.options import ScoreOptions
from knnstore.score.passes import Block, Clock, Pass, Search, search_memory
from knnstore.score.result import ScoreReport, Seconds, Setting
from knnstore.score.texts import Texts, gather_texts, split_for_tuning
from knnstore.score.tokenlog import TokenLog
from knnstore.score.tuning import Grid, choose, make_grid
from knnstore.sizes import format_size

# Measured resident memory of a process with torch, transformers and faiss imported, and the least left for a block.
_BASE_BYTES = 900_000_000
_LEAST_BLOCK_BYTES = 300_000_000
_MOST_TUNING_TOKENS = 250_000


def score(options: ScoreOptions, store: Datastore, reporter: Reporter | None = None) -> ScoreReport:
    """Perplexity of a text by an LM alone and joined to a store.

    Raises MismatchError if the store was made by another LM, tokenizer or key layer; UsageError if there is nothing
    to score; UnfinishedError without an index unless ``options.exact``.
    """
    reporter = reporter or Reporter()
    recipe = store.manifest.key
    model = key_model(LmSpec(options.model or default_model(), recipe.layer, options.dtype, options.device, exact=True))
    require_same_model(store.root, store.manifest, model)
    job = _Job(options, store, model, reporter)
    text, texts = gather_texts(options, store, model.loaded)
    reporter.say(f"score     {len(texts.ids):,} tokens of {len(texts.names):,} {text}; {job.search.words}")
    if options.tuned:
        tuning, texts = split_for_tuning(texts, _MOST_TUNING_TOKENS)
        setting = job.tune(tuning)
        return job.report(text, texts, setting, tuning)
    assert options.k is not None and options.lambda_ is not None and options.temperature is not None
    return job.report(text, texts, Setting(options.k, options.lambda_, options.temperature), None)


def _block_memory(options: ScoreOptions, model: KeyModel) -> int:
    weights: int = sum(p.numel() * p.element_size() for p in model.loaded.model.parameters() if p.device.type == "cpu")
    left = options.memory - _BASE_BYTES - 2 * weights
    if left < _LEAST_BLOCK_BYTES:
        needed = _BASE_BYTES + 2 * weights + _LEAST_BLOCK_BYTES
        raise ResourceError(f"--memory {format_size(options.memory)} is too little: give {format_size(needed)} or more")
    return left


@dataclass(slots=True)
class _Totals:
    """What a reporting pass gathers, block by block."""

    documents: list[Any] = field(default_factory=list)
    log_lm: list[Any] = field(default_factory=list)
    log_p: list[Any] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)


class _Job:
    """One run: passes over texts with one model, one store and one clock."""

    def __init__(self, options: ScoreOptions, store: Datastore, model: KeyModel, reporter: Reporter) -> None:
        self._options = options
        self._store = store
        self._model = model
        memory = _block_memory(options, model)
        self.search = Search(store, options, search_memory(memory))
        self._pass = Pass(model, store.manifest.key, self.search, memory, Clock(), reporter)

    def tune(self, texts: Texts) -> Setting:
        """The best setting on these texts, of what the options leave open."""
        grid: Grid | None = None
        log_lm, knn = [], []
        k = self._options.k or 1024
        for block in self._pass.blocks(texts, min(k, self._store.rows), "tune"):
            started = time.perf_counter()
            grid = grid or make_grid(self._options, self._store.rows, block.neighbours)
            log_lm.append(block.tokens.log_p)
            knn.append(_store_probabilities(block, grid))
            self._pass.clock.mix += time.perf_counter() - started
        assert grid is not None
        started = time.perf_counter()
        setting = choose(grid, np.concatenate(log_lm), np.concatenate(knn), self._options.lambda_)
        self._pass.clock.mix += time.perf_counter() - started
        return setting

    def report(self, text: str, texts: Texts, setting: Setting, tuning: Texts | None) -> ScoreReport:
        """Perplexities of the texts under a setting."""
        totals = _Totals()
        grid = Grid((min(setting.k, self._store.rows),), (setting.temperature,))
        path, telling = self._options.per_token, whole_words(self._model.loaded)
        with TokenLog(path, texts, self._model.loaded) if path else nullcontext() as log:
            for block in self._pass.blocks(texts, grid.ks[0], "score"):
                started = time.perf_counter()
                knn = _store_probabilities(block, grid)[:, 0, 0]
                log_p = mix(block.tokens.log_p, knn, setting.lambda_)
                rows = block.tokens.rows
                totals.documents.append(np.searchsorted(texts.first + texts.tokens, rows, side="right"))
                totals.log_lm.append(block.tokens.log_p)
                totals.log_p.append(log_p)
                totals.candidates = best_candidates(totals.candidates + candidates(block, knn, setting, telling))
                if log is not None:
                    log.write(block, knn, log_p, grid.ks[0])
                self._pass.clock.mix += time.perf_counter() - started
        return self._result(text, texts, setting, tuning, totals)

    def _result(self, text: str, texts: Texts, setting: Setting, tuning: Texts | None, totals: _Totals) -> ScoreReport:
        document = np.concatenate(totals.documents)
        count = len(texts.names)
        base, knn = (
            Likelihood(by_document(document, np.concatenate(log_p), count), texts.tokens, texts.bytes)
            for log_p in (totals.log_lm, totals.log_p)
        )
        tuned = 0 if tuning is None else len(tuning.ids)
        clock = self._pass.clock
        examples = explain(totals.candidates, texts, self._store, self._model.loaded, search=self.search, k=setting.k)
        return ScoreReport(
            store=self._store.name,
            model=self._model.loaded.identity.name,
            text=text,
            documents=count,
            tokens=len(texts.ids),
            base=base,
            knn=knn,
            setting=setting,
            nprobe=self.search.nprobe,
            exact=self._options.exact,
            search=self.search.words,
            recall=self.search.recall,
            tuned_documents=0 if tuning is None else len(tuning.names),
            tuned_tokens=tuned,
            tokens_per_second=(len(texts.ids) + tuned) / (clock.lm + clock.search + clock.mix),
            seconds=Seconds(clock.lm, clock.search, clock.mix),
            examples=examples,
        )


def _store_probabilities(block: Block, grid: Grid) -> Any:
    """p_kNN of a block's tokens, float32 (tokens, ks, temperatures); the LM's own where nothing was found."""
    knn = target_probabilities(block.neighbours, block.tokens.targets, grid.ks, grid.temperatures)
    missing = ~block.neighbours.found
    knn[missing] = np.exp(block.tokens.log_p[missing])[:, None, None]
    return knn
