"""Paths of results, which are local files; a path that can't be written is refused before any work."""

import os
from pathlib import Path

from knnstore.errors import ResourceError, UsageError
from knnstore.urls import file_path, split_url


def output_path(text: str, option: str) -> Path:
    """Return the path given by an option as a path or a ``file://`` URL. Raises UsageError for other URLs."""
    parts = split_url(text)
    if parts is None:
        return Path(text)
    if parts.scheme != "file":
        raise UsageError(
            f"{option} {text}: results are written to local files only; give a local path and copy the file with the "
            "service's own tools"
        )
    return Path(file_path(parts))


def output_file(text: str, option: str) -> Path:
    """Return the path of a file in an existing folder. Raises ResourceError if the folder can't be written to."""
    path = output_path(text, option)
    if path.is_dir():
        raise UsageError(f"{option} {text} is a folder: give the name of a file in it")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ResourceError(
            f"{option} {text}: the folder {path.parent} doesn't exist or isn't writable: give another path"
        )
    return path
