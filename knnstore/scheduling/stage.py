"""Resumable stages: which tasks of a part are committed, and running the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from knnstore.datastore.commits import CommitLog
from knnstore.scheduling.job import Job


class StageTask(Protocol):
    """A task with the name of its commit and a number of rows for the progress bar."""

    @property
    def name(self) -> str:
        """Return the name of the commit."""
        ...

    @property
    def rows(self) -> int:
        """Return the number of rows of the task."""
        ...


Task = TypeVar("Task", bound=StageTask)


@dataclass(frozen=True, slots=True)
class Stage(Generic[Task]):
    """Tasks that each commit to ``part``. ``run`` does one and returns its rows, which the bar counts in ``unit``."""

    name: str
    part: CommitLog
    tasks: Sequence[Task]
    run: Callable[[Task], int]
    unit: str = "keys"

    @property
    def rows(self) -> int:
        """Return the rows of all tasks."""
        return sum(task.rows for task in self.tasks)

    @property
    def missing(self) -> list[Task]:
        """Return the tasks that have no commit."""
        done = self.part.find_all(task.name for task in self.tasks)
        return [task for task in self.tasks if task.name not in done]

    def resume(self, job: Job) -> list[Task]:
        """Run the missing tasks and return them."""
        missing, total = self.missing, self.rows
        with job.reporter.bar(self.name, total, self.unit, total - sum(task.rows for task in missing)) as advance:
            for rows in job.runner.run(self.run, missing):
                advance(rows)
        return missing
