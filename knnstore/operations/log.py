"""``knnstore log``."""

from knnstore.datastore.history import History, load_history
from knnstore.operations.shared import StoreName, find_store


def log(store: StoreName = None) -> History:
    """Return the changes to a store: who, when and what."""
    return load_history(find_store(store))
