"""The contract of whatever runs tasks, and the plainest that keeps it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from knnstore.outofmemory import memory_errors

Task = TypeVar("Task")
Result = TypeVar("Result")
Advance = Callable[[float], None]


@runtime_checkable
class Shrinkable(Protocol):
    """A task that can be done in less memory, by and by."""

    def smaller(self) -> Any | None:
        """The same task in half the memory, about; None if it can't be made smaller."""
        ...


class Runner(Protocol):
    """Runs tasks and yields their results as they end, in any order."""

    @property
    def workers(self) -> int:
        """How many tasks run at a time, now; at least 1."""
        ...

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Call ``function`` (importable by name) on each task; an error of a task ends the run and is raised."""
        ...

    def run_shared(
        self, function: Callable[[Any, Task], Result], shared: Any, tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """``function(shared, task)`` of each task; ``shared``, which may be large, is sent once a worker."""
        ...

    def run_alone(self, function: Callable[[Task, Advance], Result], task: Task, advance: Advance) -> Result:
        """``function(task, advance)``, which may use all the threads there are.

        Of this machine, or of one worker of a cluster that isn't this command's own: there nobody is told of progress.
        """
        ...

    def require_shared(self, root: Path, reads: Sequence[Path]) -> None:
        """Raise UsageError unless every worker sees the store ``root``, which this process writes, and ``reads``."""
        ...


class SerialRunner(Runner):
    """One task after the other, in this process."""

    workers = 1

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
        """See Runner: there is no one else."""
