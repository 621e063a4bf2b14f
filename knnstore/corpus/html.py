"""HTML pages -> their main text, with the extractor of the extra ``html``."""

import codecs
import re
from importlib import import_module
from importlib.metadata import version
from typing import Any

from knnstore.corpus.options import ErrorPolicy, ReadCounts
from knnstore.corpus.text import clean, decode, oversized
from knnstore.errors import UsageError
from knnstore.wording import option

MOST_BYTES = 2**25  # limit per page, because a page is parsed as a whole
_DECLARED = re.compile(rb"""<meta\b[^>]*\bcharset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_HEAD = 2**12
_EXTRACTOR = "resiliparse"


def extractor_version() -> str:
    """Return name and version of the extractor, which determine the text. Raises UsageError without the extra."""
    _extractor()
    return f"{_EXTRACTOR} {version(_EXTRACTOR)}"


def text_of(page: bytes, errors: ErrorPolicy, counts: ReadCounts) -> str:
    """Return the main text of a page, without navigation and the like.

    The encoding is the one declared in the page, else UTF-8. Raises UnusableTextError if the page can't be decoded.
    """
    if len(page) > MOST_BYTES:
        raise oversized(MOST_BYTES, " of HTML")
    marked = page.startswith(codecs.BOM_UTF8)  # takes precedence over a declaration
    declared = None if marked else _DECLARED.search(page[:_HEAD])
    encoding = declared[1].decode() if declared else "utf-8"
    text = _decoded(page.removeprefix(codecs.BOM_UTF8), encoding, errors, counts)
    return clean(_extractor().extract_plain_text(text, main_content=True), errors, counts)


def _decoded(page: bytes, encoding: str, errors: ErrorPolicy, counts: ReadCounts) -> str:
    try:
        # UTF-16 declared in ASCII is a false declaration, and latin-1 means windows-1252 (WHATWG)
        name = {"iso8859-1": "cp1252", "ascii": "cp1252"}.get(codecs.lookup(encoding).name, encoding)
        if not codecs.lookup(name).name.startswith(("utf", "idna")):
            return page.decode(name)
    except (LookupError, UnicodeError):
        pass
    return decode(page, errors, counts)


def _extractor() -> Any:
    try:
        return import_module("resiliparse.extract.html2text")
    except ImportError:
        raise UsageError(
            "reading HTML needs an extractor that isn't installed: pip install 'knnstore[html]', or skip the pages "
            f"with {option('exclude', ['*.html', '*.htm'])}"
        ) from None
