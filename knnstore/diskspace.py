"""Disk space: checked before work starts, and reported with the amount needed when the disk fills up."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from knnstore.errors import DiskFullError
from knnstore.files import files_of, free_bytes
from knnstore.sizes import format_size
from knnstore.wording import option


def require_room(root: Path, needed: int, what: str, instead: str = "") -> None:
    """Raise DiskFullError, with both numbers, unless the disk of ``root`` has ``needed`` bytes free.

    ``what`` (plural) names what needs the space; ``instead`` is an alternative to making room, by default another
    place.
    """
    free = free_bytes(root)
    if needed > free:
        instead = instead or f"choose another place with {option('store')}"
        raise DiskFullError(
            f"{root}: {what} need about {format_size(needed)} more on disk, but {format_size(free)} are free: "
            f"make room or {instead}, then run the command again"
        )


@contextmanager
def telling_need(what: str, needed: Callable[[], int]) -> Iterator[None]:
    """Add the bytes that ``what`` still needs to the message of a DiskFullError raised within."""
    try:
        yield
    except DiskFullError as error:
        raise DiskFullError(f"{error}. {what} need about {format_size(needed())}") from error


def bytes_below(*paths: Path) -> int:
    """Return the bytes of all files in the folders."""
    return sum(entry.bytes for path in paths for entry in files_of(path).entries(path))
