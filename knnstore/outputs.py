"""Where results are written: files of this machine. What can't be written is refused before any work is done for it."""

import os
from pathlib import Path

from knnstore.errors import ResourceError, UsageError
from knnstore.urls import file_path, split_url


def output_path(text: str, option: str) -> Path:
    """The path that the value of an option means: a path, or a ``file://`` URL. Raises UsageError for another URL."""
    parts = split_url(text)
    if parts is None:
        return Path(text)
    if parts.scheme != "file":
        raise UsageError(
            f"{option} {text}: results are written to this machine alone; give a path here, and copy the file with the "
            "service's own tools"
        )
    return Path(file_path(parts))


def output_file(text: str, option: str) -> Path:
    """The same of a file, whose folder must be there. Raises ResourceError if it can't be written."""
    path = output_path(text, option)
    if path.is_dir():
        raise UsageError(f"{option} {text} is a folder: give the name of a file in it")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ResourceError(f"{option} {text}: {path.parent} isn't a folder that can be written: give another place")
    return path
