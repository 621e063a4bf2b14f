"""Registry of index types, by the names that plans record, and opening of an index of any type."""

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
"""Index types of other packages. A worker process imports them with their first task."""


@cache
def _ivfpq() -> IndexType:
    from knnstore.indexes.ivfpq.type import IvfPq  # noqa: PLC0415 - a type is loaded when a plan names it

    return IvfPq()


def index_type(kind: str) -> IndexType:
    """Return the index type with that name. Raises UsageError if it is unknown."""
    if kind == IndexPlan.kind:
        return _ivfpq()
    if kind not in INDEX_TYPES:
        raise UsageError(f"unknown index type {kind!r:.40}; known types: {', '.join([IndexPlan.kind, *INDEX_TYPES])}")
    return INDEX_TYPES[kind]


def type_of(folder: IndexFolder[Any]) -> IndexType:
    """Return the type of an index."""
    return index_type(folder.plan.kind)


def type_in(record: Any, where: str) -> IndexType:
    """Return the index type named in the JSON of a plan or recipe. Raises CorruptStoreError if it is unknown."""
    try:
        return index_type(str(record.get("kind", IndexPlan.kind)) if isinstance(record, dict) else IndexPlan.kind)
    except UsageError as error:
        raise CorruptStoreError(f"{where}: {error}") from error


def open_index(root: Path, name: str) -> IndexFolder[Any]:
    """Open the folder of the index with that name in the store at ``root``.

    Raises UnfinishedError if it is missing, CorruptStoreError if its plan is damaged or of an unknown type.
    """
    return open_folder(root, name, lambda value, where: type_in(value, where).parse(value, where))


def open_searcher(store: Datastore, device: torch.device | None = None) -> OpenIndex:
    """Open the store's index for searching. Raises UnfinishedError without one, and errors of ``IndexType.open``."""
    folder = open_index(store.root, finished_index(store))
    return type_of(folder).open(store, folder, device=device)
