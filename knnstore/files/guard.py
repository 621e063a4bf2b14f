"""Guards that stop writes of this process to a store in object storage once its lease is lost."""

from collections.abc import Callable
from pathlib import Path

from knnstore.errors import LockedError

_guards: list["Guard"] = []


class Guard:
    """Checks the writes of this process below ``root`` until ``end``.

    ``require`` asks the service whether the lease is still held and raises LockedError if it isn't.
    """

    def __init__(self, root: Path, require: Callable[[], None]) -> None:
        self.root = root
        self.require = require
        self.lost = False
        _guards.append(self)

    def lose(self) -> None:
        """Record that another writer has taken over the store."""
        self.lost = True

    def check(self) -> None:
        """Raise LockedError if the lease is known to be lost."""
        if self.lost:
            raise LockedError(
                f"another writer took over {self.root} because this one didn't respond: what was published is "
                "kept; run the same command again when the other writer has finished"
            )

    def end(self) -> None:
        """Stop checking."""
        _guards.remove(self)


def check_write(path: Path) -> None:
    """Raise LockedError before a write if the lease is known to be lost.

    This stops a writer that was frozen as early as possible. The store itself is protected by names: nobody else writes
    under those of this writer.
    """
    if guard := _guard_of(path):
        guard.check()


def check_removal(path: Path) -> None:
    """Raise LockedError unless the lease over ``path``, if this process has one, is still held.

    Call it after listing what to remove: then the decision was made before any other writer began. Since no writer
    reuses a name of an earlier epoch, the removal is harmless whenever it reaches the service.
    """
    if guard := _guard_of(path):
        guard.require()


def _guard_of(path: Path) -> Guard | None:
    return next((guard for guard in reversed(_guards) if guard.root in path.parents), None)
