"""Common parts of the operations: finding the store, and running tasks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from knnstore.datastore.store import Datastore, only_store, store_path
from knnstore.progress import Reporter
from knnstore.scheduling import Job, find_cluster, open_job
from knnstore.sizes import parse_size

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")
StoreName = str | Path | None
"""Name, path or URL of a store; None for the only store in the current folder."""
Many = str | Path | Sequence[str | Path]
"""One value or several, as for an option that can be repeated."""


def find_store(store: StoreName) -> Path:
    """Return the folder of a store."""
    return store_path(str(store)) if store else only_store(Path())


def open_store(store: StoreName) -> Datastore:
    """Open a store for reading."""
    return Datastore(find_store(store))


def strings(values: Many) -> tuple[str, ...]:
    """Return one value or several as a tuple of strings."""
    return (str(values),) if isinstance(values, str | Path) else tuple(map(str, values))


def options_of(kind: type[Options], parameters: dict[str, Any]) -> Options:
    """Return the options among an operation's ``parameters``, which are its ``locals()`` in the first line."""
    given = {}
    for field in fields(kind):
        if field.name in parameters:
            value = parameters[field.name]
            given[field.name] = strings(value) if isinstance(field.default, tuple) else value
    return kind(**given)


def size(memory: int | str) -> int:
    """Return a number of bytes, given as an integer or as text such as ``4GB``."""
    return memory if isinstance(memory, int) else parse_size(memory)


@contextmanager
def working(
    memory: int | str,
    reporter: Reporter | None,
    workers: int | None = None,
    scheduler: str | None = None,
    scheduler_file: str | None = None,
) -> Iterator[Job]:
    """Provide the job of an operation, on the cluster or the worker processes that its parameters name."""
    cluster = find_cluster(scheduler, scheduler_file, workers)
    job = Job(reporter=reporter or Reporter(), memory=size(memory), workers=workers or 0)
    with open_job(job, cluster) as opened:
        yield opened
