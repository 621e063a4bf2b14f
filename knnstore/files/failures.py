"""Explained errors of the operating system: the path, the cause and the next step."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knnstore.errors import DiskFullError, ResourceError
from knnstore.sizes import format_size
from knnstore.wording import option


@contextmanager
def storage_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError raised within into a ResourceError with the path, the cause and the next step."""
    try:
        yield
    except ResourceError:
        raise
    except OSError as error:
        raise explained(error, action, path) from error


def explained(error: OSError, action: str, path: Path) -> ResourceError:
    """Return the error with the path, the cause and the next step."""
    where = error.filename or path
    again = "make room and run the same command again to resume"
    if error.errno == errno.ENOSPC and _has_no_inode(path):
        return DiskFullError(
            f"can't {action} {where}: the disk has no free inodes for more files, although it has free bytes: remove "
            "files of any size and run the same command again to resume"
        )
    if error.errno == errno.ENOSPC:
        return DiskFullError(f"no space left to {action} {where} ({format_size(disk_free(path))} free): {again}")
    if error.errno == errno.EDQUOT:
        free = format_size(disk_free(path))
        return DiskFullError(f"can't {action} {where}: your quota is exhausted (the disk has {free} free): {again}")
    if error.errno == errno.EROFS:
        why = f"the file system is read-only; choose another place with {option('store')}"
    elif error.errno in (errno.EACCES, errno.EPERM):
        why = "permission denied; ask the owner for permission or choose another place"
    elif error.errno == errno.EIO:
        why = f"{error.strerror}; check the system log for disk errors, then run the same command again to resume"
    else:
        why = error.strerror or str(error)
    return ResourceError(f"can't {action} {where}: {why}")


def disk_free(path: Path) -> int:
    """Return the free bytes of the disk of ``path`` or of its nearest existing parent."""
    return shutil.disk_usage(_existing(path)).free


def _has_no_inode(path: Path) -> bool:
    """Return whether the file system of a path has free bytes but no free inodes."""
    disk = os.statvfs(_existing(path))
    return disk.f_files > 0 and disk.f_favail == 0 and disk.f_bavail > 0


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
