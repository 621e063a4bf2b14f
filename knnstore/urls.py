"""URLs that a user gives: of files on this machine or of object storage, and never with secrets in them."""

import os
import re
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from knnstore.errors import UsageError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_HOST = re.compile(r"[A-Za-z0-9._-]*")
_USER = re.compile(r"://[^\s/]*@")


def split_url(text: str) -> SplitResult | None:
    """The parts of a URL; None for other text.

    Raises UsageError, which doesn't repeat the URL, if it is malformed or may hold credentials or a signature.
    """
    match = _URL.match(text)
    if match is None:
        return None
    try:
        parts = urlsplit(text)
    except ValueError:
        raise UsageError(f"a {match[1]}:// URL is malformed: give {match[1]}://NAME/PATH") from None
    if not _HOST.fullmatch(parts.netloc) or "=" in parts.query:
        raise UsageError(
            f"a {match[1]}:// URL holds more than a name and a path: credentials don't belong there, where they would "
            "be shown and stored; set them in the environment, as the service's own tools expect, and leave them out"
        )
    return parts


def file_path(parts: SplitResult) -> str:
    """The path of a ``file://`` URL on this machine. Raises UsageError if it has none."""
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if parts.netloc not in ("", "localhost") or not path or "\0" in path:
        raise UsageError(f"{parts.geturl()!r} is no path on this machine: give file:///PATH, without %00")
    return path


def without_secrets(text: str) -> str:
    """The text without what stands before the host in URLs."""
    return _USER.sub("://…@", text)
