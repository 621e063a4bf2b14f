"""Tasks that need too much memory, for workers to import."""

import os
import signal
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Hungry:
    """A task that takes less memory the more it is shrunk."""

    number: int
    shrunk: int = 1

    def smaller(self):
        return replace(self, shrunk=2 * self.shrunk) if self.shrunk < 4 else None


def killed_unless_smaller(task):
    """The system kills who takes too much: by SIGKILL, without a word."""
    if task.number == 1 and task.shrunk < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task.number, task.shrunk


def out_of_memory_unless_smaller(task):
    if task.shrunk < 4:
        raise MemoryError("Unable to allocate 3.5 TiB")
    return task.number, task.shrunk
