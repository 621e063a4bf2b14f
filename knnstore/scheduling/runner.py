"""The protocol of runners of tasks, and its serial implementation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from knnstore.outofmemory import memory_errors

Task = TypeVar("Task")
Result = TypeVar("Result")
Advance = Callable[[float], None]


@runtime_checkable
class Shrinkable(Protocol):
    """A task that can be run in less memory, more slowly."""

    def smaller(self) -> Any | None:
        """Return the same task with about half the memory; None if it can't be made smaller."""
        ...


class Runner(Protocol):
    """Runs tasks and yields their results as they end, in any order.

    ``foreign``: whether the workers are those of a cluster that this command joined. This process may then be on a
    login node, so they also do what it could do itself.
    """

    foreign: bool

    @property
    def workers(self) -> int:
        """Return how many tasks can currently run at a time; at least 1."""
        ...

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield ``function(task)`` of each task; ``function`` is importable by name. An error of a task is raised."""
        ...

    def run_shared(
        self, function: Callable[[Any, Task], Result], shared: Any, tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """Yield ``function(shared, task)`` of each task; ``shared``, which may be large, is sent once per worker."""
        ...

    def run_alone(self, function: Callable[[Task, Advance], Result], task: Task, advance: Advance) -> Result:
        """Return ``function(task, advance)``, which may use all threads.

        It runs on this machine or, on a cluster not started by this command, on one worker without progress.
        """
        ...

    def require_shared(self, root: Path, reads: Sequence[Path]) -> None:
        """Raise UsageError unless every worker sees ``reads`` and the store ``root``, which this process writes."""
        ...


class SerialRunner(Runner):
    """Runs one task after the other in this process."""

    workers = 1
    foreign = False

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """See Runner."""
        for task in tasks:
            with memory_errors(f"a task ({function.__name__})"):
                result = function(task)
            yield result

    def run_shared(
        self, function: Callable[[Any, Task], Result], shared: Any, tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """See Runner."""
        for task in tasks:
            yield function(shared, task)

    def run_alone(self, function: Callable[[Task, Advance], Result], task: Task, advance: Advance) -> Result:
        """See Runner."""
        return function(task, advance)

    def require_shared(self, root: Path, reads: Sequence[Path]) -> None:
        """See Runner. There are no other workers."""
