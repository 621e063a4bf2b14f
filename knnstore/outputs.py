"""Paths of results, which are local files; a path that can't be written is refused before any work."""

import os
from pathlib import Path

from knnstore.errors import ResourceError, UsageError
from knnstore.urls import file_path, split_url


def output_path(text: str, parameter: str) -> Path:
    """Return the path that a parameter gives as a path or a ``file://`` URL. Raises UsageError for other URLs."""
    parts = split_url(text)
    if parts is None:
        return Path(text)
    if parts.scheme != "file":
        remedy = (
            "results are written to local files only; give a local path and copy the file with the service's own tools"
        )
        raise UsageError.about(parameter, text, remedy=remedy)
    return Path(file_path(parts))


def output_file(text: str, parameter: str) -> Path:
    """Return the path of a file in an existing folder. Raises ResourceError if the folder can't be written to."""
    path = output_path(text, parameter)
    if path.is_dir():
        raise UsageError.about(parameter, text, "is a folder", remedy="give the name of a file in it")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        remedy = f"the folder {path.parent} doesn't exist or isn't writable: give another path"
        raise ResourceError.about(parameter, text, remedy=remedy)
    return path
