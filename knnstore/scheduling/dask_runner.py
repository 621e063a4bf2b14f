"""Run tasks on the workers of a Dask client, with a bounded number in flight and second copies of stuck tasks."""

import math
import queue
import statistics
import time
import uuid
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from knnstore.datastore.locking import read_holder
from knnstore.errors import KnnstoreError, OutOfMemoryError, ResourceError
from knnstore.outofmemory import is_out_of_memory
from knnstore.scheduling.roster import Roster
from knnstore.scheduling.runner import Advance, Result, Runner, Shrinkable, Task
from knnstore.scheduling.worker import Terms, call, call_shared, nothing, release, untold
from knnstore.wording import option

_IN_FLIGHT = 2  # per worker: one runs and one waits
_FIRST_IN_FLIGHT = 8  # without workers, so that an adaptive cluster sees tasks and starts some
_ATTEMPTS = 3  # for a task that fails for a reason that may be transient
_COPIES = 2
_TICK_SECONDS = 0.5
_ANSWER_SECONDS = 10.0
_RELEASE_SECONDS = 3.0
_FORGOTTEN = (
    f"the Dask scheduler has dropped a task {_ATTEMPTS} times, which happens when workers come and go quickly: "
    "run the same command again; finished work is kept"
)
_STRAGGLER = 1.5  # times the median duration, after which one of the last tasks gets a second copy on an idle worker


class WorkersDiedError(OutOfMemoryError):
    """Dask gave up on a task because too many workers died while running it."""


@dataclass(slots=True)
class _Entry:
    """A task in flight: its running copies, when the last was sent, and how often it failed."""

    task: Any
    copies: list[Any] = field(default_factory=list)
    sent: float = 0.0
    failures: int = 0


class DaskRunner(Runner):
    """Runs tasks on the workers of a Dask client.

    Args:
        client: a client of ``distributed``.
        terms: requirements on the workers.
        foreign: whether the cluster wasn't started by this command. Then the last tasks get second copies, and work
            that may use all threads runs on a worker, because this process may be on a login node.
        patience: seconds without a heartbeat after which a worker's tasks are also run elsewhere.
    """

    def __init__(
        self, client: Any, terms: Terms, *, foreign: bool, patience: float, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._client = client
        self._terms = terms
        self.foreign = foreign
        self._patience = patience
        self._roster = Roster(self._identity, patience, say)

    def _identity(self) -> Any:
        try:
            return self._client.sync(
                lambda: self._client.scheduler.identity(n_workers=-1), callback_timeout=self._patience
            )
        except OSError as error:
            raise _lost(self._client) from error

    @property
    def workers(self) -> int:
        """See Runner."""
        self._roster.look()
        return max(1, len(self._roster.awake))

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """See Runner. A task whose worker dies is retried on another, up to Dask's ``allowed-failures``."""
        yield from self._results(self._send(function), tasks)

    def run_shared(
        self, function: Callable[[Any, Task], Result], shared: Any, tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """See Runner. ``shared`` is sent again if the last worker that holds it dies."""
        yield from self._results(self._send(function, partial(self._scatter, shared)), tasks)

    def _results(self, send: Callable[..., Any], tasks: Iterable[Any]) -> Iterator[Any]:
        with _answered(self._client):
            yield from _Run(self._client, self._roster, send, self.foreign, self._patience).results(tasks)

    def _scatter(self, shared: Any) -> Any:
        while True:
            self._roster.look()
            try:
                return self._client.scatter(shared, workers=self._roster.awake or None, broadcast=True, hash=False)
            except KeyError:  # a worker has just left; the next look at the roster won't list it
                time.sleep(_TICK_SECONDS)

    def run_alone(self, function: Callable[[Task, Advance], Result], task: Task, advance: Advance) -> Result:
        """See Runner."""
        if not self.foreign:
            return function(task, advance)
        result: Result = next(iter(self.run(untold, [(function, task)])))
        return result

    def require_shared(self, root: Path, reads: Sequence[Path]) -> None:
        """See Runner. Workers that join later are checked by their first task."""
        if not self.foreign:
            return
        seen = tuple(str(path.absolute()) for path in reads)
        self._terms = replace(self._terms, store=str(root.absolute()), holder=read_holder(root), reads=seen)
        self.prepare_workers()

    def prepare_workers(self) -> None:
        """Check all workers at once against the terms, and raise the error of the first that fails.

        A worker that doesn't answer soon is busy or frozen, and is checked again by its first task.
        """
        deadline = time.monotonic() + min(self._patience, _ANSWER_SECONDS)
        self._roster.look()
        asked = [
            self._client.submit(call, self._terms, nothing, workers=[address], pure=False, key=_key(nothing))
            for address in self._roster.awake
        ]
        for future in asked:
            with suppress(TimeoutError), _answered(self._client):
                error = future.exception(timeout=max(0.01, deadline - time.monotonic()))
                if error is not None:
                    raise task_error(error)
            future.release()

    def release_workers(self) -> None:
        """Ask every worker to release what tasks kept, without waiting for workers that don't answer soon."""
        with suppress(OSError, KnnstoreError, CancelledError):
            self._roster.look()
            asked = [
                self._client.submit(release, workers=[address], pure=False, key=_key(release))
                for address in self._roster.awake
            ]
            deadline = time.monotonic() + min(self._patience, _RELEASE_SECONDS)
            for future in asked:
                with suppress(TimeoutError):
                    future.exception(timeout=max(0.01, deadline - time.monotonic()))
            # otherwise the scheduler would report pending futures to a closed client
            self._client.cancel([future for future in asked if not future.done()])

    def _send(self, function: Callable[..., Any], scatter: Callable[[], Any] | None = None) -> Callable[..., Any]:
        ready = partial(call_shared if scatter else call, self._terms, function)
        shared: dict[str, Any] = {}

        def send(tasks: list[Any], workers: list[str] | None) -> list[Any]:
            # unique keys, so that a second run or copy of a task doesn't get the cached result of the first
            keys = [_key(function) for _ in tasks]
            elsewhere = workers is not None
            if scatter and (not shared or shared["shared"].status != "finished"):
                shared["shared"] = scatter()
            sent = self._client.map(
                ready, tasks, key=keys, pure=False, workers=workers, allow_other_workers=elsewhere, **shared
            )
            return list(sent)

        return send


class _Run:
    """One call of ``run``: tasks that wait, that are in flight and that have ended."""

    def __init__(self, client: Any, roster: Roster, send: Callable[..., Any], foreign: bool, patience: float) -> None:
        self._client = client
        self._roster = roster
        self._send = send
        self._foreign = foreign
        self._patience = patience
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._again: list[Any] = []  # copies to check again, because their results were lost with their workers
        self._entries: dict[str, _Entry] = {}  # by the key of each copy
        self._out = 0
        self._durations: list[float] = []

    def results(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield the results as tasks end. Tasks in flight are released when the caller stops or an error is raised."""
        waiting = iter(tasks)
        try:
            more = self._fill(waiting)
            while self._out:
                for result in self._collect(self._await_ended()):
                    self._out -= 1
                    yield result
                more = more and self._fill(waiting)
                self._watch(last=not more)
        finally:
            for entry in list(self._entries.values()):
                self._forget(entry)

    def _fill(self, waiting: Iterator[Any]) -> bool:
        """Send tasks while there is room; return whether more may be waiting."""
        self._look()
        room = _IN_FLIGHT * len(self._roster.awake) or _FIRST_IN_FLIGHT
        taken = list(islice(waiting, max(0, room - self._out)))
        self._out += len(taken)
        self._copy([_Entry(task) for task in taken])
        return self._out >= room

    def _copy(self, entries: list[_Entry], workers: list[str] | None = None) -> None:
        """Send a copy of each task, preferably to these workers, by default to any that isn't frozen."""
        if not entries:
            return
        if workers is None and self._roster.frozen:
            workers = self._roster.awake or None
        for entry, future in zip(entries, self._send([entry.task for entry in entries], workers), strict=True):
            entry.copies.append(future)
            entry.sent = time.monotonic()
            self._entries[future.key] = entry
            future.add_done_callback(self._ended.put)

    def _await_ended(self) -> list[Any]:
        """Return copies that have ended or must be checked again, waiting a moment for the first."""
        ended, self._again = self._again, []
        try:
            ended.append(self._ended.get(timeout=_TICK_SECONDS))
            while True:
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            return ended

    def _collect(self, ended: list[Any]) -> list[Any]:
        """Return the results of tasks that succeeded; failed tasks are sent again or raise."""
        finished = []
        for future in ended:
            entry = self._entries.get(future.key)
            if entry is None:
                continue  # another copy was faster
            if future.status == "finished":
                self._durations.append(time.monotonic() - entry.sent)
                finished.append((entry, future))
                for other in entry.copies:
                    self._entries.pop(other.key, None)
            elif future.status in ("error", "cancelled"):
                self._failed(entry, future)
            else:  # its result was lost with its worker before it was fetched; the scheduler recomputes it
                self._again.append(future)
        return self._fetch(finished) if finished else []

    def _fetch(self, finished: list[tuple[_Entry, Any]]) -> list[Any]:
        """Return the results of finished copies; none if they can't be fetched and the tasks are in flight again."""
        try:
            results = self._gather([future for _, future in finished])
        except TimeoutError:  # a worker froze with its result, so the tasks are run again
            for entry, _ in finished:
                entry.copies.clear()
            self._copy([entry for entry, _ in finished])
            return []
        except Exception:
            if all(future.status == "finished" for _, future in finished):
                raise
            # a result was lost with its worker and failed when recomputed, so check each one separately
            for entry, future in finished:
                self._entries |= dict.fromkeys((copy.key for copy in entry.copies), entry)
                self._again.append(future)
            return []
        for entry, _ in finished:
            self._forget(entry)
        return results

    def _gather(self, futures: list[Any]) -> list[Any]:
        gathered = self._client.sync(
            lambda: self._client.gather(futures, asynchronous=True), callback_timeout=4 * self._patience
        )
        return list(gathered)

    def _failed(self, entry: _Entry, future: Any) -> None:
        self._look()  # a lost scheduler fails everything in flight, and is the error to report
        # A cancelled task has no error of its own. The scheduler cancels tasks whose shared value was lost with the
        # last worker that held it, and all tasks when it restarts.
        raised = future.exception() if future.status == "error" else None
        error = ResourceError(_FORGOTTEN) if raised is None else task_error(raised)
        self._entries.pop(future.key, None)
        entry.copies.remove(future)
        entry.failures += 1
        if entry.copies:
            return
        if is_out_of_memory(error):
            smaller = entry.task.smaller() if isinstance(entry.task, Shrinkable) else None
            if smaller is None and entry.failures == _ATTEMPTS:
                raise error
            entry.task = smaller or entry.task
        elif not (raised is None or (self._foreign and isinstance(error, OSError))) or entry.failures == _ATTEMPTS:
            raise error
        self._copy([entry])

    def _watch(self, *, last: bool) -> None:
        """Send second copies of tasks on frozen workers, and of the last tasks if workers are idle."""
        self._look()
        frozen = self._roster.frozen
        if not (frozen or (last and self._foreign)):
            return
        processing = {address: set(keys) for address, keys in self._client.processing().items()}
        with_frozen = {key for address in frozen for key in processing.get(address, ())}
        idle = [address for address in self._roster.awake if not processing.get(address)]
        patient = _STRAGGLER * statistics.median(self._durations or [math.inf]) + 1
        now = time.monotonic()
        for entry in sorted({id(entry): entry for entry in self._entries.values()}.values(), key=lambda e: e.sent):
            if all(copy.key in with_frozen for copy in entry.copies) and self._roster.awake:
                self._copy([entry], idle or self._roster.awake)
            elif last and self._foreign and idle and len(entry.copies) < _COPIES and now - entry.sent > patient:
                self._copy([entry], [idle.pop()])

    def _look(self) -> None:
        """Update the roster. Raises ResourceError if the scheduler is gone."""
        if self._client.status != "running":
            raise _lost(self._client)
        self._roster.look()

    def _forget(self, entry: _Entry) -> None:
        """Release all copies. A running copy can't be stopped; it ends and rewrites equal files."""
        for copy in entry.copies:
            self._entries.pop(copy.key, None)
            copy.release()
        entry.copies.clear()


@contextmanager
def _answered(client: Any) -> Iterator[None]:
    """Raise ResourceError instead of Dask's errors once the scheduler is gone."""
    try:
        yield
    except (Exception, CancelledError) as error:
        if isinstance(error, KnnstoreError) or client.status == "running":
            raise
        raise _lost(client) from error


def _lost(client: Any) -> ResourceError:
    return ResourceError(
        f"the Dask scheduler at {client.scheduler.address if client.scheduler else '?'} is gone: "
        "run the same command again when it is back; finished work is kept"
    )


def task_error(error: BaseException) -> BaseException:
    """Return the error to raise for a task that ended with ``error``."""
    if isinstance(error, KnnstoreError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return ResourceError(
            f"a worker of the cluster can't import {error.name}: install the same version of knnstore there"
        )
    if type(error).__name__ == "KilledWorker":
        return WorkersDiedError(
            "several workers died while running one task, most likely for lack of memory: "
            f"run the same command again with a smaller {option('memory')} or fewer {option('workers')}; finished work "
            "is kept"
        )
    return error


def _key(function: Callable[..., Any]) -> str:
    return f"{function.__name__}-{uuid.uuid4().hex}"
