"""A local folder that caches what was read from object storage, up to a limit.

Each file is named after an object's URL and version and is as long as the object; blocks that weren't fetched are
holes. A block is cached if its bytes match its checksum, which is stored with the object. Since there is no other
record, none can be wrong after a crash, and processes share the folder without communicating. Every process that has a
file open holds a shared ``flock`` on it, and only files that nobody holds are removed to make room.
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
from knnstore.files.protocol import Version
from knnstore.files.remotepath import RemotePath
from knnstore.sizes import format_size, parse_size
from knnstore.wording import option

LIMIT_VARIABLE = "KNNSTORE_STORE_CACHE"
FOLDER_VARIABLE = "KNNSTORE_STORE_CACHE_FOLDER"
DEFAULT_LIMIT = "50GB"
SMALLEST_LIMIT = 64 * 10**6
_KEPT_SHARE = 0.8  # of the limit is kept once the limit is reached


class Cache:
    """The files in ``folder``, limited to ``limit`` bytes on disk."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._lock = Lock()
        self._room = 0  # bytes that may be added before the folder has to be scanned again

    def file(self, path: RemotePath, version: Version) -> Path:
        """Return the file of a version of an object."""
        identity = json.dumps([str(path), version.e_tag, version.version])
        name = sha256(identity.encode()).hexdigest()[:32]
        return self.folder / name[:2] / name

    def note(self, path: RemotePath) -> Path:
        """Return the file that records which version of a whole object is cached."""
        name = sha256(str(path).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.json"

    def make_room(self, size: int) -> None:
        """Remove the least recently opened files that nobody holds, if ``size`` more bytes exceed the limit."""
        with self._lock:
            self._room -= size
            if self._room >= 0:
                return
            files = self._files()
            used = sum(status.st_blocks * 512 for _, status in files)
            if used + size > self.limit:
                for file, status in sorted(files, key=lambda entry: entry[1].st_mtime):
                    if used + size <= _KEPT_SHARE * self.limit:
                        break
                    if _removed(file):
                        used -= status.st_blocks * 512
            # other processes fill the folder too, so scan it again soon
            self._room = max(0, self.limit - used - size) // 8

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        files = []
        for file in self.folder.glob("??/*"):
            with suppress(OSError):
                files.append((file, file.stat()))
        return files


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
    """Return the cache configured in the environment. Raises UsageError for an invalid or too small limit."""
    text = os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT
    limit = parse_size(text)
    if limit < SMALLEST_LIMIT:
        least = format_size(SMALLEST_LIMIT)
        remedy = f"give {option('store_cache')} at least {least}"
        raise UsageError(f"a cache of {text} can't hold the files that a search has open: {remedy}")
    return _cache(os.environ.get(FOLDER_VARIABLE) or str(_caches() / "knnstore" / "objects"), limit)


def _caches() -> Path:
    """Return the user's folder for caches."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        raise UsageError(f"there is no home folder for the cache of object storage: set ${FOLDER_VARIABLE}") from None


@contextmanager
def disk_errors(cache: Cache) -> Iterator[None]:
    """Turn an OSError of the cache's disk into a ResourceError with the next step."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"can't use the cache {cache.folder}: {error.strerror or error}; set another folder with "
            f"${FOLDER_VARIABLE} or give a smaller {option('store_cache')}"
        ) from error
