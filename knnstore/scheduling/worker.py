"""What runs in a worker: it is looked at and prepared by the first task that reaches it, then runs one at a time.

Every task carries the terms. So workers that join later are prepared as well, and no broadcast to all workers is
needed, which one frozen worker would hold up for good.
"""

import gc
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from knnstore.datastore.locking import read_holder
from knnstore.errors import MismatchError, UsageError
from knnstore.objects.path import path_of
from knnstore.outofmemory import memory_errors

# What the bytes of a store follow from, besides the corpus and the LM.
_LIBRARIES = ("knnstore", "torch", "transformers", "tokenizers", "numpy", "zarr", "numcodecs", "pyarrow", "faiss-cpu")
# A network file system may show what another machine wrote only when its cache of a folder has run out.
_SEEN_WITHIN_SECONDS = 60
_ONE_AT_A_TIME = threading.Lock()
_KEPT: list[Callable[[], object]] = []


@dataclass(frozen=True, slots=True)
class Terms:
    """What a worker needs to take part.

    ``versions``: of libraries, which must be the same. ``threads``: for its libraries, 0 for as many as Dask gives it.
    ``gpus``: one each, by the worker's name. ``store`` and ``holder``: the folder that is being written, and what its
    lock says of the writer; ``reads``: files or folders that must be there.
    """

    versions: tuple[tuple[str, str], ...] = ()
    threads: int = 0
    gpus: tuple[str, ...] = ()
    store: str = ""
    holder: str = ""
    reads: tuple[str, ...] = ()


def library_versions() -> tuple[tuple[str, str], ...]:
    """Python's and the libraries' versions here; a build's own mark (``+cpu``, ``+cu126``) isn't part of one."""
    found = [("python", ".".join(platform.python_version_tuple()[:2]))]
    for name in _LIBRARIES:
        try:
            found.append((name, version(name).split("+")[0]))
        except PackageNotFoundError:
            found.append((name, "none"))
    return tuple(found)


def call(terms: Terms, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` on a prepared worker, when no other task of knnstore's runs in its process.

    One at a time whatever the worker's threads: two would mix up their keys in one forward hook, and take twice the
    memory that was promised.
    """
    with _ONE_AT_A_TIME, memory_errors(f"a task ({function.__name__})"):
        prepare(terms)
        return function(*arguments)


def call_shared(terms: Terms, function: Callable[..., Any], task: Any, shared: Any) -> Any:
    """``function(shared, task)``, as ``call`` does it."""
    return call(terms, function, shared, task)


def untold(work: tuple[Callable[..., Any], Any]) -> Any:
    """``function(task, advance)`` of a pair of these, where nobody is told of progress."""
    function, task = work
    return function(task, lambda _: None)


def kept(forget: Callable[[], object]) -> None:
    """Say how to let go of what tasks keep in their process for the next ones: an LM, an open index.

    Workers of a cluster outlive a run, and others use them too: ``release`` calls it when the run has ended.
    """
    if forget not in _KEPT:
        _KEPT.append(forget)


def release() -> None:
    """Let go of what tasks keep, unless a task runs here (the second copy of one that seemed lost)."""
    if _ONE_AT_A_TIME.acquire(blocking=False):
        try:
            for forget in _KEPT:
                forget()
            if _KEPT:
                gc.collect()
        finally:
            _ONE_AT_A_TIME.release()


def nothing() -> None:
    """Does nothing: for ``call`` to prepare a worker."""


@lru_cache(maxsize=8)
def prepare(terms: Terms) -> None:
    """Raise MismatchError or UsageError unless this process meets the terms; set its threads and its GPU."""
    _require_versions(terms)
    _require_store(terms)
    for path in terms.reads:
        if not Path(path).exists():
            raise UsageError(f"{_name()} doesn't see {path}: put it where every worker and this command see it")
    _set_threads(terms)
    if terms.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = terms.gpus[int(_worker().name) % len(terms.gpus)]


def _require_versions(terms: Terms) -> None:
    here = dict(library_versions())
    told = [f"{name} {here.get(name)} (here {wanted})" for name, wanted in terms.versions if here.get(name) != wanted]
    if told:
        raise MismatchError(
            f"{_name()} has other versions than this command: {', '.join(told)}. "
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
                f"{_name()} doesn't see the store {terms.store} as this command does: "
                "give a --store on a file system that every worker shares, under the same path"
            )
        time.sleep(1)
        waited += 1


def _set_threads(terms: Terms) -> None:
    threads = terms.threads or _worker().state.nthreads
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # what was loaded before has read the environment already; what wasn't isn't loaded for this
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(threads)


def _worker() -> Any:
    from distributed import get_worker  # noqa: PLC0415 - see the package

    return get_worker()


def _name() -> str:
    return f"worker {_worker().address} on {socket.gethostname()}"
