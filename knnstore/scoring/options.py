"""Options of scoring."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from knnstore.corpus.listing import Listing
from knnstore.corpus.options import ErrorPolicy, ReadOptions
from knnstore.corpus.pairs import DEFAULT_FIELDS
from knnstore.corpus.selection import Selection
from knnstore.corpus.sources import find_pairs, find_sources
from knnstore.errors import UsageError
from knnstore.wording import option

DEFAULT_K = 1024
_Range = tuple[str, Callable[[float], bool], int, str]
_RANGES: tuple[_Range, ...] = (
    ("k", lambda k: 1 <= k <= 2**16, 2**16, f"give a number of neighbours from 1 to {2**16}"),
    ("lambda_", lambda weight: 0 <= weight < 1, 1, "the store's weight is at least 0 and below 1"),
    ("temperature", lambda divisor: 0 < divisor < math.inf, 0, "give a finite number above 0"),
    ("cache", lambda tokens: 0 <= tokens <= 2**20, 2**20, f"give a number of tokens from 0 to {2**20}"),
    ("cache_temperature", lambda divisor: 0 < divisor < math.inf, 0, "give a finite number above 0"),
    ("nprobe", lambda lists: lists >= 1, 1, "give at least 1"),
)
"""Valid values of options: name, test, limit, and what to give instead."""


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What to score, and how. None for k, ``lambda_`` or temperature: tuned on half of the documents.

    ``text``: files to score; empty for the held-out documents of the store. For a seq2seq store they hold pairs in
    ``source_field`` and ``target_field``; ``source`` and ``target`` are parallel files. ``exact``: search every key.
    ``quantised``: use the distances of the PQ codes instead of the keys'. ``per_token`` and ``save_neighbours``:
    Parquet files to write; ``report``: an HTML page. ``cache``: number of pairs from a document's own past that are a
    further source, with ``cache_weight`` and ``cache_temperature``, tuned if None. ``tuned``: whether to use the
    setting stored by ``knnstore tune``; None: if it exists and fits. ``adaptive``: whether a gate weighs every token;
    None: if the stored setting has one. ``only`` and ``without``: patterns of documents, or a share of the keys such as
    ``10%``, to search or to leave out. ``exclude_overlap``: leave out documents that repeat the text to score.
    ``allow_mismatch``: accept another LM than the store's. ``include``, ``exclude`` and ``follow_links``: which files
    of ``text`` are read, see ``Selection``.
    """

    store: str | None = None
    model: str | None = None
    text: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    source_field: str = DEFAULT_FIELDS[0]
    target_field: str = DEFAULT_FIELDS[1]
    text_field: str = "text"
    errors: ErrorPolicy = "strict"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_links: bool = False
    k: int | None = None
    lambda_: float | None = None
    temperature: float | None = None
    nprobe: int | None = None
    exact: bool = False
    quantised: bool = False
    per_token: str | Path | None = None
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    exclude_overlap: bool = False
    save_neighbours: str | Path | None = None
    report: str | Path | None = None
    cache: int = 0
    cache_weight: float | None = None
    cache_temperature: float | None = None
    tuned: bool | None = None
    adaptive: bool | None = None
    dtype: str = "auto"
    device: str = "auto"
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        for name, fits, limit, remedy in _RANGES:
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise UsageError.about(name, value, limit=limit, remedy=remedy)
        if not self.cache and (self.cache_weight is not None or self.cache_temperature is not None):
            parts = f"{option('cache_weight')} and {option('cache_temperature')}"
            raise UsageError(f"{parts} require {option('cache', 'TOKENS')}")
        if self.cache_weight is not None and not 0 <= self.cache_weight + (self.lambda_ or 0) < 1:
            remedy = "the weights of the cache and the store must add up to less than 1"
            raise UsageError.about("cache_weight", self.cache_weight, limit=1, remedy=remedy)
        if (self.tuned or self.adaptive) and self.given:
            whole = f"{option('tuned', True)} and {option('adaptive', True)}"
            parts = f"{option('k')}, {option('lambda_')}, {option('temperature')}"
            raise UsageError(f"{whole} can't be combined with {parts} or those of the cache")
        if self.exact and (self.quantised or self.nprobe is not None):
            raise UsageError(
                f"{option('exact', True)} searches every key: omit {option('quantised', True)} and {option('nprobe')}"
            )

    @property
    def given(self) -> bool:
        """Return whether any part of the mixture is given."""
        parts = (self.k, self.lambda_, self.temperature, self.cache_weight, self.cache_temperature)
        return any(part is not None for part in parts)

    @property
    def complete(self) -> bool:
        """Return whether nothing is left to tune."""
        cache = (self.cache_weight, self.cache_temperature) if self.cache else ()
        return None not in (self.k, self.lambda_, self.temperature, *cache)

    def reading(self, task: str) -> ReadOptions:
        """Return how the texts are read for a store of this task."""
        pairs = (self.source_field, self.target_field) if task == "seq2seq" else None
        return ReadOptions(text_field=self.text_field, errors=self.errors, pairs=pairs)

    @property
    def named(self) -> bool:
        """Return whether files are named; else the held-out documents of the store are scored."""
        return bool(self.text or self.source or self.target)

    def files(self, task: str) -> Listing:
        """Return the files to score with a store of this task. Raises UsageError for files of another task."""
        selection = Selection(self.include, self.exclude, self.follow_links)
        if task == "seq2seq":
            return find_pairs(self.text, self.source, self.target, selection, (self.source_field, self.target_field))
        if self.source or self.target:
            pairs = f"{option('source')} and {option('target')}"
            raise UsageError(
                f"{pairs} require a store made with {option('task', 'seq2seq')}: give {option('text', 'PATH')}"
            )
        return find_sources(self.text, selection, [self.text_field])
