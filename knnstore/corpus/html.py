"""HTML pages -> their main text, by the extractor of the extra ``html``."""

import codecs
import re
from importlib import import_module
from importlib.metadata import version
from typing import Any

from knnstore.corpus.options import ErrorPolicy, ReadCounts
from knnstore.corpus.text import UnusableTextError, decode, mend
from knnstore.errors import UsageError

MOST_BYTES = 2**25  # of a page, which is parsed as a whole
_DECLARED = re.compile(rb"""<meta\b[^>]*\bcharset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_HEAD = 2**12
_EXTRACTOR = "resiliparse"


def extractor_version() -> str:
    """Name and version of the extractor: another one may extract other texts. Raises UsageError without the extra."""
    _extractor()
    return f"{_EXTRACTOR} {version(_EXTRACTOR)}"


def text_of(page: bytes, errors: ErrorPolicy, counts: ReadCounts) -> str:
    """The main text of a page, without navigation and the like.

    The encoding is the one that the page declares, else UTF-8. Raises UnusableTextError for one that can't be decoded.
    """
    if len(page) > MOST_BYTES:
        raise UnusableTextError(f"more than {MOST_BYTES} bytes of HTML; split it, or use --errors skip")
    marked = page.startswith(codecs.BOM_UTF8)  # which outweighs a declaration
    declared = None if marked else _DECLARED.search(page[:_HEAD])
    encoding = declared[1].decode() if declared else "utf-8"
    text = _decoded(page.removeprefix(codecs.BOM_UTF8), encoding, errors, counts)
    return mend(_extractor().extract_plain_text(text, main_content=True), errors, counts)


def _decoded(page: bytes, encoding: str, errors: ErrorPolicy, counts: ReadCounts) -> str:
    try:
        # what says in ASCII that it is UTF-16 isn't, and windows-1252 is what pages mean by latin-1 (WHATWG)
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
            "HTML is read by an extractor that isn't installed: pip install 'knnstore[html]', or leave the pages out "
            "with --exclude '*.html' --exclude '*.htm'"
        ) from None
