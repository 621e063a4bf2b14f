"""``knnstore restore``."""

from knnstore.living.restore import RestoreReport
from knnstore.living.restore import restore as restore_store
from knnstore.operations.shared import StoreName, find_store


def restore(store: StoreName = None, *, state: int | None = None) -> RestoreReport:
    """Restore the documents of an earlier state, by default of the last one with different documents."""
    return restore_store(find_store(store), state)
