"""``knnstore log``."""

from knnstore.datastore.history import History, load_history
from knnstore.operations.shared import StoreName, find_store


def log(store: StoreName = None) -> History:
    """Return the history of a store: the time, author and content of each change."""
    return load_history(find_store(store))
