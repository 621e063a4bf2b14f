"""URLs given by a user: of local files or of object storage, and never with secrets in them."""

import os
import re
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from knnstore.errors import UsageError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_HOST = re.compile(r"[A-Za-z0-9._-]*")
_USER = re.compile(r"://[^\s/]*@")


def split_url(text: str) -> SplitResult | None:
    """Return the parts of a URL; None for other text.

    Raises UsageError if the URL is malformed or may hold credentials or a signature; the message doesn't repeat it.
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
            f"a {match[1]}:// URL holds more than a name and a path: credentials in it would be shown and stored; set "
            "them in the environment, as the service's own tools expect"
        )
    return parts


def file_path(parts: SplitResult) -> str:
    """Return the local path of a ``file://`` URL. Raises UsageError if it has none."""
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if parts.netloc not in ("", "localhost") or not path or "\0" in path:
        raise UsageError(f"{parts.geturl()!r} isn't a local path: give file:///PATH, without %00")
    return path


def without_secrets(text: str) -> str:
    """Return the text without user names and passwords in URLs."""
    return _USER.sub("://…@", text)
