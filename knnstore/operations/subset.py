"""``knnstore subset``."""

from pathlib import Path

from knnstore.datastore.selection import parse_share
from knnstore.datastore.store import store_path
from knnstore.living.derived import DeriveReport
from knnstore.living.deriving import subset as subset_store
from knnstore.operations.shared import Many, StoreName, open_store, strings, working
from knnstore.progress import Reporter


def subset(
    store: StoreName = None,
    *,
    into: str | Path,
    sample: str | None = None,
    documents: Many = (),
    overwrite: bool = False,
    scheduler: str | None = None,
    scheduler_file: str | None = None,
    workers: int | None = None,
    memory: int | str = "4GB",
    reporter: Reporter | None = None,
) -> DeriveReport:
    """Make a store from some of another store's documents: a ``sample`` such as 10%, or patterns of ``documents``."""
    opened, share = open_store(store), parse_share(sample, "sample") if sample else None
    with working(memory, reporter, workers, scheduler, scheduler_file) as job:
        return subset_store(
            opened, store_path(str(into)), job, share=share, documents=strings(documents), overwrite=overwrite
        )
