"""``knnstore score``."""

from collections.abc import Sequence
from pathlib import Path

from knnstore.corpus.options import ErrorPolicy
from knnstore.operations.shared import Many, StoreName, open_store, options_of, strings, working
from knnstore.progress import Reporter
from knnstore.scoring.job import score as score_texts
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.result import ScoreReport


def score(
    store: StoreName | Sequence[str | Path] = None,
    *,
    text: Many = (),
    source: Many = (),
    target: Many = (),
    source_field: str = "source",
    target_field: str = "target",
    k: int | None = None,
    lambda_: float | None = None,
    temperature: float | None = None,
    nprobe: int | None = None,
    exact: bool = False,
    quantised: bool = False,
    only: Many = (),
    without: Many = (),
    exclude_overlap: bool = False,
    cache: int = 0,
    cache_weight: float | None = None,
    cache_temperature: float | None = None,
    tuned: bool | None = None,
    adaptive: bool | None = None,
    save_neighbours: str | Path | None = None,
    report: str | Path | None = None,
    per_token: str | Path | None = None,
    scheduler: str | None = None,
    scheduler_file: str | None = None,
    model: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    allow_mismatch: bool = False,
    include: Many = (),
    exclude: Many = (),
    follow_links: bool = False,
    text_field: str = "text",
    errors: ErrorPolicy = "strict",
    memory: int | str = "4GB",
    reporter: Reporter | None = None,
) -> ScoreReport:
    """Measure the perplexity of a text with and without a store, or several.

    ``text``: files to score; empty for the held-out documents. ``report``: gather the ``details`` of a page for this
    path, which only the command line writes.
    """
    options = options_of(ScoreOptions, locals() | {"store": None})
    names: tuple[StoreName, ...] = (None,) if store is None else strings(store) or (None,)
    first, *beside = map(open_store, names)
    with working(memory, reporter, None, scheduler, scheduler_file) as job:
        return score_texts(options, first, job, beside=beside)
