"""The types of index that there are, by the names that plans record, and opening an index of any of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knnstore.errors import CorruptStoreError, UsageError
from knnstore.indexes.plan import IndexFolder, IndexPlan, finished_index, open_folder

if TYPE_CHECKING:  # a store is described without loading torch
    import torch

    from knnstore.datastore.store import Datastore
    from knnstore.indexes.protocols import IndexType, OpenIndex

INDEX_TYPES: dict[str, IndexType] = {}
"""The types of other packages. A worker process imports them with the first of their tasks."""


@cache
def _ivfpq() -> IndexType:
    from knnstore.indexes.ivfpq.type import IvfPq  # noqa: PLC0415 - a type is loaded when a plan names it

    return IvfPq()


def index_type(kind: str) -> IndexType:
    """Return the type of that name. Raises UsageError if there is none."""
    if kind == IndexPlan.kind:
        return _ivfpq()
    if kind not in INDEX_TYPES:
        raise UsageError(f"an index of type {kind!r:.40}: known are {', '.join([IndexPlan.kind, *INDEX_TYPES])}")
    return INDEX_TYPES[kind]


def type_of(folder: IndexFolder[Any]) -> IndexType:
    """Return the type of an index."""
    return index_type(folder.plan.kind)


def type_in(record: Any, where: str) -> IndexType:
    """Return the type that the JSON of a plan or a recipe names. Raises CorruptStoreError for one that isn't known."""
    try:
        return index_type(str(record.get("kind", IndexPlan.kind)) if isinstance(record, dict) else IndexPlan.kind)
    except UsageError as error:
        raise CorruptStoreError(f"{where}: {error}") from error


def open_index(root: Path, name: str) -> IndexFolder[Any]:
    """Open the folder of the index of that name of the store at ``root``.

    Raises UnfinishedError if it isn't there, CorruptStoreError if its plan is damaged or of an unknown type.
    """
    return open_folder(root, name, lambda value, where: type_in(value, where).parse(value, where))


def open_searcher(store: Datastore, device: torch.device | None = None) -> OpenIndex:
    """Open the store's index for searching. Raises UnfinishedError if it has none, and what ``IndexType.open`` does."""
    folder = open_index(store.root, finished_index(store))
    return type_of(folder).open(store, folder, device=device)
