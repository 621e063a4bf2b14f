"""The context that the stages of a command share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from knnstore.progress import Reporter
from knnstore.scheduling.runner import Result, Runner, SerialRunner, Task


@dataclass(frozen=True, slots=True)
class Job:
    """The runner of a command's tasks, the reporter of its progress, and its limits.

    ``memory``: bytes for all processes together. ``workers``: processes of this machine that share it besides this one.
    """

    runner: Runner = field(default_factory=SerialRunner)
    reporter: Reporter = field(default_factory=Reporter)
    memory: int = 4 * 10**9
    workers: int = 0

    def run_one(self, function: Callable[[Task], Result], task: Task) -> Result:
        """Run one task and return its result."""
        return next(iter(self.runner.run(function, [task])))
