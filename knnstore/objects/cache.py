"""A folder of this machine that holds what was read from object storage, up to a limit.

A file of it is named after an object's URL and its version, and is as long as the object; blocks that weren't fetched
are holes. A block is there if its bytes have its checksum, which travels with the object: no record of what is there is
kept, so none can be wrong after a crash, and processes share the folder without talking to each other. Whoever has a
file open holds a shared ``flock`` on it, and only files that nobody holds make room for others.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from threading import Lock

from knnstore.errors import ResourceError, UsageError
from knnstore.objects.path import ObjectPath, Version
from knnstore.sizes import format_size, parse_size

LIMIT_VARIABLE = "KNNSTORE_STORE_CACHE"
FOLDER_VARIABLE = "KNNSTORE_STORE_CACHE_FOLDER"
DEFAULT_LIMIT = "50GB"
SMALLEST_LIMIT = 64 * 10**6
_KEPT_SHARE = 0.8  # of the limit, once it was reached


class Cache:
    """The files in ``folder``, which take ``limit`` bytes of the disk."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._lock = Lock()
        self._room = 0  # bytes that may come before the folder has to be looked through again

    def file(self, path: ObjectPath, version: Version) -> Path:
        """The file of a version of an object."""
        told = json.dumps([str(path), version.e_tag, version.version])
        name = sha256(told.encode()).hexdigest()[:32]
        return self.folder / name[:2] / name

    def note(self, path: ObjectPath) -> Path:
        """The file that says which version of a whole object is here."""
        name = sha256(str(path).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.json"

    def make_room(self, size: int) -> None:
        """Remove the files that were opened longest ago, but for those that are held, if ``size`` more are too many."""
        with self._lock:
            self._room -= size
            if self._room >= 0:
                return
            files = self._files()
            used = sum(found.st_blocks * 512 for _, found in files)
            if used + size > self.limit:
                for file, found in sorted(files, key=lambda entry: entry[1].st_mtime):
                    if used + size <= _KEPT_SHARE * self.limit:
                        break
                    if _removed(file):
                        used -= found.st_blocks * 512
            # others fill the folder as well: look again before long
            self._room = max(0, self.limit - used - size) // 8

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for file in self.folder.glob("??/*"):
            with suppress(OSError):
                found.append((file, file.stat()))
        return found


def _removed(file: Path) -> bool:
    try:
        with file.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()
    except OSError:
        return False
    return True


@lru_cache(maxsize=8)
def _cache(folder: str, limit: int) -> Cache:
    return Cache(Path(folder), limit)


def the_cache() -> Cache:
    """The cache that the environment asks for. Raises UsageError for a limit that is none, or too small."""
    text = os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT
    limit = parse_size(text)
    if limit < SMALLEST_LIMIT:
        least = format_size(SMALLEST_LIMIT)
        raise UsageError(f"a cache of {text} can't hold what a search has open: give --store-cache at least {least}")
    return _cache(os.environ.get(FOLDER_VARIABLE) or str(_caches() / "knnstore" / "objects"), limit)


def _caches() -> Path:
    """The user's folder for caches."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        raise UsageError(
            f"there is no home folder to keep what is read from object storage in: set ${FOLDER_VARIABLE}"
        ) from None


@contextmanager
def disk_errors(cache: Cache) -> Iterator[None]:
    """Turn an OSError of the cache's disk into a ResourceError that says what to do."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"can't use the cache {cache.folder}: {error.strerror or error}; give it another place with "
            f"${FOLDER_VARIABLE}, or a smaller --store-cache"
        ) from error
