"""Room on the disk: what work needs and what is there, told before it starts and where the disk fills up meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from knnstore.atomic import free_bytes
from knnstore.errors import DiskFullError
from knnstore.sizes import format_size


def require_room(root: Path, needed: int, what: str, instead: str = "choose another place with --store") -> None:
    """Raise DiskFullError, with both numbers, unless the disk of ``root`` has ``needed`` bytes free.

    ``what`` needs them, in the plural; ``instead`` of making room one may do that.
    """
    free = free_bytes(root)
    if needed > free:
        raise DiskFullError(
            f"{root}: {what} need about {format_size(needed)} more on disk and {format_size(free)} are free: "
            f"make room, or {instead}, and run the command again"
        )


@contextmanager
def telling_need(what: str, needed: Callable[[], int]) -> Iterator[None]:
    """Have a disk that fills up within told with the bytes that ``what`` is left to do needs."""
    try:
        yield
    except DiskFullError as error:
        raise DiskFullError(f"{error}. {what} need about {format_size(needed())}") from error
