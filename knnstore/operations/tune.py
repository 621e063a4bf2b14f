"""``knnstore tune``."""

from pathlib import Path

from knnstore.operations.shared import StoreName, open_store, options_of
from knnstore.progress import Reporter
from knnstore.scoring.crossvalidation import TuneReport
from knnstore.scoring.crossvalidation import tune as tune_mixture
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.saved import SavedNeighbours


def tune(
    file: str | Path,
    store: StoreName = None,
    *,
    k: int | None = None,
    lambda_: float | None = None,
    temperature: float | None = None,
    adaptive: bool | None = None,
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> TuneReport:
    """Find the best mixture from saved neighbours and store it. ``dry_run``: don't store it."""
    options = options_of(ScoreOptions, locals() | {"store": None})
    return tune_mixture(SavedNeighbours(str(file)), open_store(store), options, reporter, keep=not dry_run)
