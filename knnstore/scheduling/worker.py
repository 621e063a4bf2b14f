"""Code that runs in a worker: its first task checks and prepares it, then it runs one task at a time.

Every task carries the terms. Therefore workers that join later are prepared too, without a broadcast to all workers,
which a frozen worker would block.
"""

import gc
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from knnstore.datastore.locking import read_holder
from knnstore.errors import MismatchError, UsageError
from knnstore.files import path_of
from knnstore.outofmemory import memory_errors
from knnstore.wording import in_shell, option, speaking

# Libraries that determine the bytes of a store, besides the corpus and the LM.
_LIBRARIES = ("knnstore", "torch", "transformers", "tokenizers", "numpy", "zarr", "numcodecs", "pyarrow", "faiss-cpu")
# A network file system may show files of another machine only after its folder cache expires.
_SEEN_WITHIN_SECONDS = 60
_ONE_AT_A_TIME = threading.Lock()
_KEPT: list[Callable[[], object]] = []


@dataclass(frozen=True, slots=True)
class Terms:
    """The requirements on a worker.

    ``versions``: of libraries, which must be equal. ``threads``: for its libraries; 0 for as many as Dask assigns.
    ``gpus``: assigned one each by the worker's name. ``store`` and ``holder``: the folder being written and the record
    in its lock. ``reads``: files or folders that must exist. ``shell``: whether errors are worded for the command line.
    """

    versions: tuple[tuple[str, str], ...] = ()
    threads: int = 0
    gpus: tuple[str, ...] = ()
    store: str = ""
    holder: str = ""
    reads: tuple[str, ...] = ()
    shell: bool = field(default_factory=in_shell)


def library_versions() -> tuple[tuple[str, str], ...]:
    """Return the versions of Python and the libraries, without build tags such as ``+cpu``."""
    versions = [("python", ".".join(platform.python_version_tuple()[:2]))]
    for name in _LIBRARIES:
        try:
            versions.append((name, version(name).split("+")[0]))
        except PackageNotFoundError:
            versions.append((name, "none"))
    return tuple(versions)


def call(terms: Terms, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)`` on a prepared worker, while no other task of knnstore runs in its process.

    Only one task runs at a time, whatever the worker's threads: two would mix up their keys in one forward hook and use
    twice the planned memory.
    """
    with _ONE_AT_A_TIME, speaking(shell=terms.shell), memory_errors(f"a task ({function.__name__})"):
        prepare(terms)
        return function(*arguments)


def call_shared(terms: Terms, function: Callable[..., Any], task: Any, shared: Any) -> Any:
    """Return ``function(shared, task)``, run by ``call``."""
    return call(terms, function, shared, task)


def untold(work: tuple[Callable[..., Any], Any]) -> Any:
    """Return ``function(task, advance)`` without reporting progress."""
    function, task = work
    return function(task, lambda _: None)


def kept(forget: Callable[[], object]) -> None:
    """Register a function that releases what tasks keep in their process, such as an LM or an open index.

    Workers of a cluster outlive a run and have other users: ``release`` calls it when the run has ended.
    """
    if forget not in _KEPT:
        _KEPT.append(forget)


def release() -> None:
    """Release what tasks keep, unless a task is running here (a second copy of one that seemed lost)."""
    if _ONE_AT_A_TIME.acquire(blocking=False):
        try:
            for forget in _KEPT:
                forget()
            if _KEPT:
                gc.collect()
        finally:
            _ONE_AT_A_TIME.release()


def nothing() -> None:
    """Do nothing; used with ``call`` to prepare a worker."""


@lru_cache(maxsize=8)
def prepare(terms: Terms) -> None:
    """Set threads and GPU of this process. Raises MismatchError or UsageError if it doesn't meet the terms."""
    _require_versions(terms)
    _require_store(terms)
    for path in terms.reads:
        if not Path(path).exists():
            raise UsageError(
                f"{_name()} doesn't see {path}: put it on a file system that all workers and this command share"
            )
    _set_threads(terms)
    if terms.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = terms.gpus[int(_worker().name) % len(terms.gpus)]


def _require_versions(terms: Terms) -> None:
    own = dict(library_versions())
    differences = [
        f"{name} {own.get(name)} (here {wanted})" for name, wanted in terms.versions if own.get(name) != wanted
    ]
    if differences:
        raise MismatchError(
            f"{_name()} has other versions than this command: {', '.join(differences)}. "
            "Equal bytes need equal versions: install the same ones on every worker"
        )


def _require_store(terms: Terms) -> None:
    if not terms.store:
        return
    waited = 0
    store = path_of(terms.store)
    while not (store.is_dir() and read_holder(store) == terms.holder):
        if waited == _SEEN_WITHIN_SECONDS or not store.is_dir():
            raise UsageError(
                f"{_name()} doesn't see the store {terms.store}: "
                f"give a {option('store')} on a file system that all workers share under the same path"
            )
        time.sleep(1)
        waited += 1


def _set_threads(terms: Terms) -> None:
    threads = terms.threads or _worker().state.nthreads
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # libraries that are already loaded have read the environment; others aren't imported only for this
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(threads)


def _worker() -> Any:
    from distributed import get_worker  # noqa: PLC0415 - see the package

    return get_worker()


def _name() -> str:
    return f"worker {_worker().address} on {socket.gethostname()}"
