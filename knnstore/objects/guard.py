"""What a writer of this process may still do to a store in object storage: nothing once its lease is lost."""

from collections.abc import Callable
from pathlib import Path

from knnstore.errors import LockedError

_guards: list["Guard"] = []


class Guard:
    """Stands before the writes of this process below ``root`` until ``end``.

    ``require`` asks the service whether the lease is still held, and raises LockedError if it isn't.
    """

    def __init__(self, root: Path, require: Callable[[], None]) -> None:
        self.root = root
        self.require = require
        self.lost = False
        _guards.append(self)

    def lose(self) -> None:
        """Another writer has the store now."""
        self.lost = True

    def check(self) -> None:
        """Raise LockedError if the lease is known to be lost."""
        if self.lost:
            raise LockedError(
                f"another writer took {self.root} over, since this one had shown no sign of life: what is published "
                "is kept; run the same command again once the other has ended"
            )

    def end(self) -> None:
        """Stand down."""
        _guards.remove(self)


def check_write(path: Path) -> None:
    """Raise LockedError before a write of a writer that is known to have lost its lease.

    It stops a writer that woke up early on. What protects the store is that nobody else writes under its names.
    """
    if guard := _guard_of(path):
        guard.check()


def check_removal(path: Path) -> None:
    """Raise LockedError unless the lease over ``path``, if there is one in this process, is still held.

    Call it when it is decided, and listed, what goes: then it was decided before any other writer began. As no writer
    takes a name up again that an earlier epoch used, the removal does no harm whenever it reaches the service.
    """
    if guard := _guard_of(path):
        guard.require()


def _guard_of(path: Path) -> Guard | None:
    return next((guard for guard in reversed(_guards) if guard.root in path.parents), None)
