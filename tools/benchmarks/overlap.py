"""Cost of finding verbatim overlaps: CPU seconds for 10⁹ stored tokens, with a text of 250,000 tokens.

A pass over synthetic tokens that repeat nothing of the text, and over the tokens of the text itself, where every window
is compared token by token. With ``--store`` also the whole measurement of ``score``, on its stored tokens and its
held-out text, by its exact-match memory if it has one.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Result, Settings
from knnstore.datastore.store import Datastore
from knnstore.datastore.stores import Stores
from knnstore.overlap import Shingles, window_starts
from knnstore.scoring.overlap import measure_overlap
from knnstore.scoring.texts import heldout_texts
from knnstore.suffix_array.build import open_suffixes

TEXT_TOKENS, VOCABULARY = 250_000, 50_000
COLUMNS = ("what", "tokens", "CPU s", "CPU s for 10⁹ tokens")


def run(settings: Settings, work: Path) -> Result:
    tokens = settings.size(settings.rows, quick=2**21, full=2**25)
    rounds = settings.size(settings.rounds, quick=3, full=5)
    draws = np.random.default_rng(0)
    text = draws.integers(0, VOCABULARY, TEXT_TOKENS).astype(np.uint32)
    stored = draws.integers(0, VOCABULARY, tokens).astype(np.uint16)
    starts = window_starts(np.array([0]), np.array([len(text)]), 0, len(text))
    windows = Shingles(text, starts)
    rows = [
        row("table of the text", len(text), least(lambda: Shingles(text, starts), rounds)),
        row("stored tokens, none repeated", len(stored), least(lambda: list(windows.find(stored)), rounds)),
        row("stored tokens, all repeated", len(text), least(lambda: list(windows.find(text)), rounds)),
    ]
    if settings.store:
        rows.append(of_store(Datastore(settings.store), rounds))
    ratios = {"repeated_vs_not": round(rows[2][3] / rows[1][3], 4)}
    return Result("overlap", {"text": TEXT_TOKENS, "rounds": rounds}, COLUMNS, rows, ratios)


def of_store(store: Datastore, rounds: int) -> tuple[str, int, float, float]:
    texts = heldout_texts(Stores([store]))
    spent = least(lambda: measure_overlap(texts, Stores([store]), exclude=False), rounds)
    how = "by its exact-match memory" if open_suffixes(store) else "by a pass"
    return row(f"{store.name}, {len(texts.ids):,} held-out tokens, {how}", store.live_rows, spent)


def row(what: str, tokens: int, seconds: float) -> tuple[str, int, float, float]:
    return what, tokens, round(seconds, 4), round(seconds / tokens * 1e9, 2)


def least(work: Callable[[], Any], rounds: int) -> float:
    """Return the CPU seconds of the fastest round."""
    spent = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        spent.append(time.process_time() - started)
    return min(spent)
