"""Scaling of the runner: tasks that sleep instead of running the LM, on 1 to 64 workers of a real Dask scheduler.

Efficiency: ideal duration of the tasks without any overhead, divided by the actual one. The overhead is measured with
empty tasks, one after the other. All workers share this process and its interpreter, so each number is a lower bound
for a cluster whose workers are separate processes.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import Result, Settings
from knnstore.scheduling import Runner, SerialRunner, cluster_runner, worker
from knnstore.scheduling.clusters import closed_quietly

_SECONDS = 2.0  # duration of a task: about that of a chunk of 131,072 keys on a GPU; on a CPU it takes a minute
_FORGETTING_SECONDS = 30.0
_QUICK = (1, 4, 16, 64)  # workers
_FULL = (1, 2, 4, 8, 16, 32, 64)


def run(settings: Settings, _work: Path) -> Result:
    counts = _QUICK if settings.quick else _FULL
    each = 5 if settings.quick else 8
    rows: list[tuple[Any, ...]] = []
    ratios: dict[str, float] = {}
    for workers in counts:
        with loopback_cluster(workers) as runner:
            list(runner.run(nap, [0.0] * workers))  # connections are opened with the first task
            tasks = each * workers
            seconds = timed(runner, [_SECONDS] * tasks)
        ideal = math.ceil(tasks / workers) * _SECONDS
        ratios[f"efficiency_{workers}"] = ideal / seconds
        rows.append((workers, tasks / seconds, tasks / seconds * _SECONDS, ideal / seconds))
    overhead = task_overhead(200 if settings.quick else 1000)
    ratios["efficiency"] = min(ratios.values())
    ratios["overhead_vs_task"] = overhead / _SECONDS
    about = {
        "seconds per task": _SECONDS,
        "tasks per worker": each,
        "overhead of a task, ms": 1000 * overhead,
        "in this process, ms": 1000 * timed(SerialRunner(), [0.0] * 1000) / 1000,
    }
    return Result("cluster", about, ("workers", "tasks/s", "÷ perfect one", "efficiency"), rows, ratios)


def nap(seconds: float) -> float:
    """Sleep: a task that costs only time."""
    if seconds:
        time.sleep(seconds)
    return seconds


def timed(runner: Runner, tasks: list[float]) -> float:
    """Return the seconds that the tasks take."""
    started = time.perf_counter()
    assert len(list(runner.run(nap, tasks))) == len(tasks)
    return time.perf_counter() - started


def task_overhead(tasks: int) -> float:
    """Return the overhead of a task on one worker, in seconds."""
    with loopback_cluster(1) as runner:
        list(runner.run(nap, [0.0]))
        return timed(runner, [0.0] * tasks) / tasks


@contextmanager
def loopback_cluster(workers: int) -> Iterator[Runner]:
    """Start a scheduler on loopback and workers in threads of this process."""
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.scheduler.worker-ttl": None}),
        closed_quietly(
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=False,
                host="127.0.0.1",
                protocol="tcp",
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
            )
        ) as cluster,
        nothing_left_at(cluster.scheduler),
        a_lock_a_worker(),
        cluster_runner(cluster.scheduler_address, patience=60) as runner,
    ):
        yield runner


@contextmanager
def nothing_left_at(scheduler: Any) -> Iterator[None]:
    """At the end, wait until the scheduler has dropped the runner's tasks; only then may the workers stop."""
    yield
    deadline = time.monotonic() + _FORGETTING_SECONDS
    while scheduler.tasks and time.monotonic() < deadline:
        time.sleep(0.01)


@contextmanager
def a_lock_a_worker() -> Iterator[None]:
    """Lift the limit of one task per process; here each worker has one thread and so runs one task at a time."""
    lock = worker._ONE_AT_A_TIME
    worker._ONE_AT_A_TIME = threading.Semaphore(1000)  # type: ignore[assignment]
    try:
        yield
    finally:
        worker._ONE_AT_A_TIME = lock
