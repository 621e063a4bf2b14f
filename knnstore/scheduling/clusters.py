"""Provide workers: processes of this machine for the duration of a command, or an existing cluster."""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from knnstore.errors import ResourceError, UsageError
from knnstore.scheduling.job import Job
from knnstore.scheduling.machine import available_cores
from knnstore.scheduling.runner import Runner, SerialRunner
from knnstore.scheduling.worker import Terms, library_versions
from knnstore.sizes import format_size
from knnstore.wording import option

PATIENCE_SECONDS = 30.0
_MOST_PER_CORE = 16  # worker processes
_WAITING_SECONDS = 2.0  # without an answer, after which the command reports what it waits for
_DASK_LOGGERS = ("distributed", "tornado", "asyncio")
Say = Callable[[str], None]


@contextmanager
def local_runner(workers: int, gpus: Sequence[str] = (), modules: Sequence[str] = ()) -> Iterator[Runner]:
    """Run tasks on a Dask cluster of ``workers`` local processes within the context; 0: in this process.

    Each worker runs one task at a time with its share of the cores, and with one of the ``gpus`` if any are given.
    ``modules``: what the tasks import besides the modules that are loaded here; see ``_forking``.
    Raises UsageError for far more processes than cores.
    """
    if workers == 0:
        yield SerialRunner()
        return
    if workers > (most := _MOST_PER_CORE * available_cores()):
        remedy = (
            f"this machine has {available_cores()} cores, and more than {most} processes slow each other down; give at "
            "most the number of cores"
        )
        raise UsageError.about("workers", workers, limit=most, remedy=remedy)
    import dask  # noqa: PLC0415 - takes a second, so imported only when used
    from distributed import Client, LocalCluster  # noqa: PLC0415

    from knnstore.scheduling.dask_runner import DaskRunner  # noqa: PLC0415

    threads = max(1, available_cores() // workers)
    environment = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    settings = {
        "distributed.nanny.pre-spawn-environ": environment,
        "distributed.worker.daemon": True,
        "distributed.scheduler.allowed-failures": 1,  # a task that killed two workers is retried with less memory
        "distributed.worker.profile.enabled": False,  # it looks at the stack a hundred times per second
        "distributed.admin.tick.limit": "1h",  # a forward pass holds the GIL for longer than Dask expects
        "distributed.comm.timeouts.connect": "60s",
    }
    with dask.config.set(settings), _forking(modules):
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port, because two runs at once would collide on Dask's default
            memory_limit=0,  # memory is bounded by the plan; Dask would only pause the worker
            silence_logs=logging.ERROR,
        )
        with closed_quietly(cluster), Client(cluster) as client:
            yield DaskRunner(client, Terms(threads=threads, gpus=tuple(gpus)), foreign=False, patience=PATIENCE_SECONDS)


@contextmanager
def _forking(modules: Sequence[str]) -> Iterator[None]:
    """Fork the workers that Dask starts within the context from one process, which has imported what they need.

    That is our modules that are loaded here, and ``modules``. Importing torch and transformers takes seconds, which
    every worker would spend. The process that is forked has no threads, and uses no GPU. Only on
    Linux: elsewhere, system libraries don't always survive a fork, and each worker imports for itself.
    """
    import dask  # noqa: PLC0415
    from distributed.utils import get_mp_context  # noqa: PLC0415

    if sys.platform != "linux":
        yield
        return
    loaded = [name for name in sys.modules if name.startswith("knnstore.")]
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload(["distributed", *loaded, *modules])  # in place of Dask's own list
        yield


@contextmanager
def closed_quietly(closing: Any) -> Iterator[Any]:
    """Yield a cluster or client and close it at the end, ignoring timeouts, as on a busy machine.

    The workers of a cluster are daemons and end with this process.
    """
    try:
        yield closing
    finally:
        with suppress(TimeoutError), _muted(*_DASK_LOGGERS):
            closing.close()


@contextmanager
def _muted(*names: str) -> Iterator[None]:
    """Disable the loggers with these names and those below them; the command itself reports errors."""
    prefixes = tuple(f"{name}." for name in names)
    loggers = [
        logger
        for name, logger in logging.Logger.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and f"{name}.".startswith(prefixes) and not logger.disabled
    ]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Dask cluster to join, by the address of its scheduler or by the file that the scheduler wrote."""

    address: str | None
    scheduler_file: str | None


def find_cluster(scheduler: str | None, scheduler_file: str | None, workers: int | None) -> Cluster | None:
    """Return the cluster that is named, else that of Dask's configuration; None for this machine.

    ``workers``: processes of this machine to start instead. Raises UsageError if more than one place is named.
    """
    if (scheduler or scheduler_file) and workers is not None:
        raise UsageError(
            f"{option('workers')} starts workers on this machine and {option('scheduler')} uses a cluster's: "
            "give only one"
        )
    if scheduler and scheduler_file:
        raise UsageError(f"{option('scheduler')} and {option('scheduler_file')} both name a cluster: give only one")
    if workers is not None:
        return None
    import dask  # noqa: PLC0415

    address = None if scheduler_file else scheduler or dask.config.get("scheduler-address", None)
    return Cluster(address, scheduler_file) if address or scheduler_file else None


@contextmanager
def open_job(job: Job, cluster: Cluster | None, gpus: Sequence[str] = (), modules: Sequence[str] = ()) -> Iterator[Job]:
    """Give ``job`` a runner: on the workers of ``cluster``, else on its number of processes of this machine.

    ``gpus``, ``modules``: see ``local_runner``.
    """
    if cluster is None:
        running = local_runner(job.workers, gpus, modules)
    else:
        say = job.reporter.say
        running = cluster_runner(cluster.address, cluster.scheduler_file, memory=job.memory, say=say)
    with running as runner:
        yield replace(job, runner=runner)


@contextmanager
def cluster_runner(
    address: str | None = None,
    scheduler_file: str | None = None,
    *,
    memory: int = 0,
    patience: float = PATIENCE_SECONDS,
    say: Say = lambda _: None,
) -> Iterator[Runner]:
    """Run tasks on the Dask cluster at ``address``, or on the one whose scheduler wrote ``scheduler_file``.

    ``memory``: bytes that a worker will use. ``patience``: seconds after which a silent worker counts as frozen.

    Raises ResourceError if the scheduler doesn't answer or a worker's limit is below ``memory``, MismatchError if a
    worker has other library versions, and UsageError for an invalid address.
    """
    import dask  # noqa: PLC0415
    from distributed import Client  # noqa: PLC0415

    from knnstore.scheduling.dask_runner import DaskRunner  # noqa: PLC0415

    where = address or scheduler_file
    try:
        with (
            dask.config.set({"distributed.comm.timeouts.connect": f"{patience:g}s"}),
            _said_if_slow(say, f"waiting   for the Dask scheduler at {where}, for up to {patience:g} seconds"),
        ):
            # checked first, because a client with a bad address takes a minute to close
            place = _checked(address) if address else _read_address(str(scheduler_file), patience)
            client = Client(place, timeout=patience, set_as_default=False)
    except OSError as error:
        raise ResourceError(
            f"no Dask scheduler answers at {where} within {patience:g} seconds ({_first_line(error)}): "
            f"start it with 'dask scheduler', or give its address with {option('scheduler')}"
        ) from error
    except ValueError as error:
        remedy = f"{_first_line(error)}; an address looks like tcp://HOST:8786"
        raise UsageError.about("scheduler" if address else "scheduler_file", where, remedy=remedy) from error
    with _muted("distributed"), closed_quietly(client):
        workers = client.scheduler_info()["workers"]
        _require_memory(workers, memory)
        say(f"cluster   {len(workers):,} worker{'s' * (len(workers) != 1)} at {client.scheduler.address}")
        runner = DaskRunner(client, Terms(library_versions()), foreign=True, patience=patience, say=say)
        runner.prepare_workers()
        try:
            yield runner
        finally:
            runner.release_workers()


def _checked(address: str) -> str:
    """Return the address. Raises ValueError if it can't be a scheduler's."""
    from distributed.comm.addressing import parse_address, parse_host_port  # noqa: PLC0415
    from distributed.comm.registry import get_backend  # noqa: PLC0415

    scheme, place = parse_address(address)
    get_backend(scheme)
    if scheme == "inproc":
        if place.count("/") != 2:
            raise ValueError("it isn't the address of a scheduler in this process")
    elif not 0 < int(parse_host_port(place)[1]) < 2**16:
        raise ValueError(f"port {parse_host_port(place)[1]} is not between 1 and 65535")
    return address


def _read_address(path: str, patience: float) -> str:
    """Wait for the file that a scheduler writes when it starts, and return the address in it.

    Raises OSError if it doesn't exist after ``patience`` seconds, ValueError if no scheduler wrote it.
    """
    end = time.monotonic() + patience
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.1)
    with Path(path).open("rb") as file:
        written = json.loads(file.read(2**20))
    if not isinstance(written, dict) or not isinstance(written.get("address"), str):
        raise ValueError("no scheduler wrote this file: it has no address")  # noqa: TRY004 - the value is wrong
    return _checked(written["address"])


@contextmanager
def _said_if_slow(say: Say, words: str) -> Iterator[None]:
    timer = threading.Timer(_WAITING_SECONDS, say, [words])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _require_memory(workers: dict[str, Any], memory: int) -> None:
    for address, worker in workers.items():
        limit = worker["memory_limit"]
        if 0 < limit < memory:
            given, fitting = format_size(memory), format_size(limit).replace(" ", "")
            raise ResourceError(
                f"the memory limit of worker {address} is {format_size(limit)}, less than {option('memory', given)}: "
                f"give {option('memory', fitting)}, or start the workers with a larger --memory-limit"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
