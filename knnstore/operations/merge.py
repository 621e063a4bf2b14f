"""``knnstore merge``."""

from collections.abc import Sequence
from pathlib import Path

from knnstore.datastore.store import store_path
from knnstore.living.derived import DeriveReport
from knnstore.living.deriving import merge as merge_stores
from knnstore.operations.shared import open_store, working
from knnstore.progress import Reporter


def merge(
    stores: Sequence[str | Path],
    *,
    into: str | Path,
    overwrite: bool = False,
    scheduler: str | None = None,
    scheduler_file: str | None = None,
    workers: int | None = None,
    memory: int | str = "4GB",
    reporter: Reporter | None = None,
) -> DeriveReport:
    """Merge stores of the same LM into one. A text that several stores hold is kept once."""
    opened = [open_store(store) for store in stores]
    with working(memory, reporter, workers, scheduler, scheduler_file) as job:
        return merge_stores(opened, store_path(str(into)), job, overwrite=overwrite)
