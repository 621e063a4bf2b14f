"""Running a job's tasks: in this process, or on Dask workers. One contract, ``Runner``.

A task is a picklable call without side effects but the files that it alone owns, and may run twice.
Only this module imports dask.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from knnstore.errors import KnnstoreError, ResourceError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Runner(Protocol):
    """Runs tasks and yields their results as they end, in any order."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Call ``function`` (importable by name) on each task; an error of a task ends the run and is raised."""
        ...


class SerialRunner:
    """One task after the other, in this process."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """See Runner."""
        for task in tasks:
            yield function(task)


class DaskRunner:
    """Tasks on the workers of a Dask client, a bounded number in flight."""

    def __init__(self, client: object, slots: int) -> None:
        self._client = client
        self._in_flight = slots + 2  # the next tasks wait at the worker while it computes

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """See Runner. A task whose worker dies is tried on another, up to Dask's ``allowed-failures``."""
        from distributed import as_completed  # noqa: PLC0415 - a second's import, only where it is used

        waiting = iter(tasks)
        futures = as_completed(raise_errors=False)
        in_flight = 0

        def submit() -> bool:
            for task in waiting:
                # pure=False: the same task in a second run isn't the first one's remembered result
                futures.add(self._client.submit(function, task, pure=False))  # type: ignore[attr-defined]
                return True
            return False

        while in_flight < self._in_flight and submit():
            in_flight += 1
        while in_flight:
            future = next(futures)
            in_flight -= 1
            if future.status != "finished":
                raise _task_error(future)
            yield future.result()
            in_flight += submit()


def _task_error(future: object) -> BaseException:
    error = future.exception()  # type: ignore[attr-defined]
    if isinstance(error, KnnstoreError):
        return error
    if type(error).__name__ == "KilledWorker":
        return ResourceError(
            "the workers died several times over one task, most likely for lack of memory: "
            "run the same command again with a smaller --memory or fewer --workers; what is done stays done"
        )
    assert isinstance(error, BaseException)
    return error


@contextmanager
def local_runner(workers: int) -> Iterator[Runner]:
    """A Dask cluster of ``workers`` processes on this machine for the length of the context; 0 runs in this process.

    Each worker runs one task at a time with its share of the cores, because a forward hook shared by two
    threads would mix their keys.
    """
    if workers == 0:
        yield SerialRunner()
        return
    import dask  # noqa: PLC0415
    from distributed import Client, LocalCluster  # noqa: PLC0415

    threads = str(max(1, available_cores() // workers))
    settings = {
        "distributed.nanny.pre-spawn-environ": {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")},
        "distributed.worker.daemon": True,
        "distributed.admin.tick.limit": "1h",  # a forward pass holds the GIL for longer than Dask finds normal
        "distributed.comm.timeouts.connect": "60s",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port: two runs at once must not meet at Dask's usual one
            memory_limit=0,  # the plan bounds memory; Dask pausing a worker would only stop it
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield DaskRunner(client, workers)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
