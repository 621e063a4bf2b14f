"""``knnstore info``."""

from knnstore.description import StoreInfo, describe_store
from knnstore.operations.shared import StoreName, find_store


def info(store: StoreName = None) -> StoreInfo:
    """Describe a store: model, size, index, recall and health."""
    return describe_store(find_store(store))
