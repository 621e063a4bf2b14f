"""The scoring job: open, compare fingerprints, choose a mixture, and report on documents it wasn't tuned on."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from knnstore.arrays import Float64, Int64
from knnstore.datastore.removed import Removed
from knnstore.datastore.selection import others, selected
from knnstore.datastore.store import Datastore
from knnstore.datastore.stores import Stores
from knnstore.errors import UsageError
from knnstore.lm.forward import KeyModel
from knnstore.lm.matching import require_known_model
from knnstore.lm.spec import default_model
from knnstore.neighbours import Neighbours
from knnstore.perplexity import Likelihood, by_document
from knnstore.progress import Reporter
from knnstore.recognition import model_of_store, require_same_model
from knnstore.scheduling import Job
from knnstore.scoring.best_mixture import best_mixture
from knnstore.scoring.checks import block_memory, check_memory_first
from knnstore.scoring.choice import ChosenMixture, given_choice, stored_choice
from knnstore.scoring.columns import Columns
from knnstore.scoring.details import DetailsGatherer
from knnstore.scoring.examples import Candidate, best_candidates, candidates, explain, whole_words
from knnstore.scoring.grid import make_cache_temperatures
from knnstore.scoring.options import DEFAULT_K, ScoreOptions
from knnstore.scoring.overlap import Overlap, measure_overlap
from knnstore.scoring.passes import Block, Clock, Pass, search_memory
from knnstore.scoring.result import ScoreReport, Seconds
from knnstore.scoring.saved import NeighboursWriter
from knnstore.scoring.search import StoresSearch
from knnstore.scoring.texts import Texts, gather_texts, split_for_tuning
from knnstore.scoring.tokenlog import TokenLog
from knnstore.scoring.tuning_table import TuningTable
from knnstore.suffix_array.build import open_suffixes
from knnstore.wording import option

_MOST_TUNING_TOKENS = 250_000


def score(
    options: ScoreOptions,
    store: Datastore,
    job: Job | None = None,
    *,
    beside: Sequence[Datastore] = (),
) -> ScoreReport:
    """Measure the perplexity of a text with an LM only and with an LM and a store.

    ``beside``: further stores by the same LM, searched along with the first. On a cluster that this command didn't
    start, its workers run the LM and the search.

    Raises MismatchError if a store was made by another LM, tokenizer or key layer, UsageError if there is nothing to
    score, UnfinishedError without an index unless ``options.exact``.
    """
    job = job or Job()
    reporter = job.reporter
    stores = Stores([store, *beside])
    _require_one_for_more(stores, options)
    name = options.model or default_model()
    check_memory_first(job.memory, name)
    allow = (lambda message: reporter.say(f"mismatch  {message}")) if options.allow_mismatch else None
    loading = {"dtype": options.dtype, "device": options.device}

    def say(message: str) -> None:
        reporter.say(f"model     {message}")

    model = model_of_store(store, name, **loading, allow=allow, say=say)
    for other in beside:
        require_known_model(other.root, other.manifest)
        require_same_model(other, model, allow, say)
    stores = _masked(stores, options, reporter)
    scoring = _Scoring(options, stores, model, job)
    text, texts = gather_texts(options, stores, model.loaded)
    overlap, repeated = measure_overlap(texts, stores, exclude=options.exclude_overlap)
    if overlap.source_documents:
        reporter.say(f"overlap   {overlap.words}")
        if options.exclude_overlap:
            scoring = _Scoring(options, _without_overlap(stores, repeated), model, job)
    count = f"{len(texts.names):,} document{'' if len(texts.names) == 1 else 's'}"
    reporter.say(f"score     {text}: {count}, {len(texts.ids):,} tokens; {scoring.search.words}")
    return scoring.run(text, texts, overlap)


def _require_one_for_more(stores: Stores, options: ScoreOptions) -> None:
    """Raise UsageError for options that require a single store."""
    if stores.only is not None:
        return
    for name in ("only", "without", "tuned", "save_neighbours"):
        if getattr(options, name):
            raise UsageError(
                f"{option(name)} requires a single store, but {option('store')} names {len(stores.each)} "
                f"({stores.name})"
            )


def _masked(stores: Stores, options: ScoreOptions, reporter: Reporter) -> Stores:
    """Return the store with only the documents searched that the options select; several stores unchanged."""
    store = stores.only
    if store is None or not (options.only or options.without):
        return stores
    every = store.live_rows
    if options.only:
        store = store.masked(others(store, selected(store, options.only, "only")))
    if options.without:
        store = store.masked(selected(store, options.without, "without"))
    if not store.live_rows:
        raise UsageError(f"{option('only')} and {option('without')} leave no key to search")
    reporter.say(f"mask      {store.live_rows:,} of {every:,} keys are searched")
    return Stores([store])


def _without_overlap(stores: Stores, repeated: Sequence[Removed]) -> Stores:
    """Return the stores without the documents that repeat the text to score."""
    masked = Stores([store.masked(documents) for store, documents in zip(stores.each, repeated, strict=True)])
    if not masked.live_rows:
        raise UsageError(
            f"{option('exclude_overlap', True)} leaves no key of {stores.name} to search: every document repeats the "
            "text; score another text"
        )
    return masked


class _Scoring:
    """One run: passes over texts with one model, one group of stores and one clock."""

    def __init__(self, options: ScoreOptions, stores: Stores, model: KeyModel, job: Job) -> None:
        self._options = options
        self._stores = stores
        self._model = model
        self._reporter = job.reporter
        runner = job.runner if job.runner.foreign else None
        memory = block_memory(job.memory, model)
        self.search = StoresSearch(stores, options, search_memory(memory), runner, model.loaded.device)
        self._pass = Pass(
            model, stores.manifest.key, self.search, memory, Clock(), job.reporter, options.cache, runner=runner
        )
        self._saving = NeighboursWriter(options.save_neighbours) if options.save_neighbours else None
        self._cache_grid: tuple[float, ...] = ()

    def run(self, text: str, texts: Texts, overlap: Overlap) -> ScoreReport:
        """Choose a mixture and report on the texts that it wasn't tuned on."""
        with self._saving or nullcontext():
            texts, choice = self._choose(texts)
            result = self._report(text, texts, choice, overlap)
            if self._saving is not None:
                self._saving.finish(
                    store=self._stores.name,
                    model=self._model.loaded.identity,
                    layer=self._stores.manifest.key.layer,
                    rows=self._stores.rows,
                    k=self._width,
                    search=self.search.words,
                    text=text,
                    cache=self._pass.cache,
                    cache_temperatures=self._cache_grid,
                )
        return result

    @property
    def _width(self) -> int:
        """Return the number of neighbours used for tuning and saved."""
        return min(self._options.k or DEFAULT_K, self._stores.rows)

    def _choose(self, texts: Texts) -> tuple[Texts, ChosenMixture]:
        """Return the texts to report on, and the mixture: as given, as stored, or tuned on some of the documents."""
        if self._options.complete:
            return texts, given_choice(self._options, self._stores.rows)
        store = self._stores.only
        stored = store and stored_choice(self._options, store, texts, self._reporter)
        if store and stored:
            mixture = stored[1].mixture
            suffixes = open_suffixes(store) if mixture.needs_matches else None
            self._pass = replace(self._pass, cache=mixture.setting.cache, suffixes=suffixes)
            return stored
        if store and self._options.adaptive:
            self._pass = replace(self._pass, suffixes=open_suffixes(store))
        tuning, texts = split_for_tuning(texts, _MOST_TUNING_TOKENS)
        return texts, self._tune(tuning)

    def _tune(self, texts: Texts) -> ChosenMixture:
        """Return the best mixture for these texts, for all that the options leave open."""
        table: TuningTable | None = None
        cache, gate = self._options.cache, bool(self._options.adaptive)
        for block in self._pass.blocks(texts, self._width, "tune", partial(self._cache_temperatures, None)):
            started = time.perf_counter()
            table = table or TuningTable.for_blocks_like(
                block, self._options, self._stores.rows, cache_size=cache, gate=gate
            )
            table.add(block)
            self._save(block, texts)
            self._pass.clock.mix += time.perf_counter() - started
        assert table is not None
        started = time.perf_counter()
        mixture = best_mixture(table, self._options)
        self._pass.clock.mix += time.perf_counter() - started
        return ChosenMixture(mixture, "", len(texts.names), len(texts.ids))

    def _report(self, text: str, texts: Texts, choice: ChosenMixture, overlap: Overlap) -> ScoreReport:
        """Return the report on the texts with a mixture."""
        totals, mixture, best = Columns(), choice.mixture, list[Candidate]()
        path, telling = self._options.per_token, whole_words(self._model.loaded)
        width = min(max(mixture.k, self._width if self._saving else 0), self._stores.rows)
        temperatures = partial(self._cache_temperatures, mixture.setting.cache_temperature)
        details = None
        if self._options.report:
            details = DetailsGatherer(mixture, self._options, len(texts.ids), self._stores.rows)
            width = max(width, min(DEFAULT_K, self._stores.rows))
        with TokenLog(path, texts, self._model.loaded) if path else nullcontext() as log:
            for block in self._pass.blocks(texts, width, "score", temperatures):
                started = time.perf_counter()
                evidence, tokens = block.evidence, block.tokens
                mixed = mixture.mixed(evidence, tokens.targets, tokens.log_p)
                totals.append(document=block.document, log_lm=tokens.log_p, log_p=mixed.log_p)
                if mixture.gate is not None:
                    totals.append(log_constant=mixture.constant.log_p(evidence, tokens.targets, tokens.log_p))
                best = best_candidates(best + candidates(block, mixed, telling))
                if details is not None:
                    details.add(block, mixed)
                if log is not None:
                    log.write(block, mixed, mixture.k)
                self._save(block, texts)
                self._pass.clock.mix += time.perf_counter() - started
        result = self._result(text, texts, choice, totals, best=best, overlap=overlap)
        if details is None:
            return result
        return replace(result, details=details.details(texts, self._stores, self._model.loaded, self.search))

    def _cache_temperatures(self, chosen: float | None, neighbours: Neighbours) -> tuple[float, ...]:
        """Return the chosen temperature only; for tuning or saving, the whole grid, based on the first block."""
        if chosen is not None and self._saving is None:
            return (chosen,)
        grid = self._cache_grid or make_cache_temperatures(self._options, neighbours)
        self._cache_grid = grid if chosen is None or chosen in grid else (*grid, chosen)
        return self._cache_grid

    def _save(self, block: Block, texts: Texts) -> None:
        if self._saving is not None:
            # a report may need more neighbours than are saved; saved blocks all have the same width
            narrow = replace(block.evidence, neighbours=block.evidence.neighbours.nearest(self._width))
            self._saving.write(replace(block, evidence=narrow), texts, self._model.loaded.identity.vocabulary)

    def _result(
        self,
        text: str,
        texts: Texts,
        choice: ChosenMixture,
        totals: Columns,
        *,
        best: list[Candidate],
        overlap: Overlap,
    ) -> ScoreReport:
        base, knn, constant = (
            self._likelihood(texts, totals["document"], totals[name]) if name in totals else None
            for name in ("log_lm", "log_p", "log_constant")
        )
        assert base is not None and knn is not None
        clock, setting = self._pass.clock, choice.mixture.setting
        examples = explain(best, texts, self._stores, self._model.loaded, search=self.search, k=choice.mixture.k)
        return ScoreReport(
            store=self._stores.name,
            keys=self._stores.live_rows,
            model=self._model.loaded.identity.name,
            text=text,
            documents=len(texts.names),
            tokens=len(texts.ids),
            base=base,
            knn=knn,
            constant=constant,
            setting=setting,
            setting_from=choice.words,
            nprobe=self.search.nprobe,
            exact=self._options.exact,
            search=self.search.words,
            recall=self.search.recall,
            tuned_documents=choice.documents,
            tuned_tokens=choice.tokens,
            tokens_per_second=(len(texts.ids) + choice.tokens) / (clock.lm + clock.search + clock.mix),
            seconds=Seconds(clock.lm, clock.search, clock.mix),
            examples=examples,
            overlap=overlap,
            names=texts.names,
        )

    def _likelihood(self, texts: Texts, document: Int64, log_p: Float64) -> Likelihood:
        nats = by_document(document, log_p, len(texts.names))
        return Likelihood(nats, texts.tokens, texts.bytes)
