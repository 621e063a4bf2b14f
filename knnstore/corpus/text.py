"""Bytes -> text -> pieces, in bounded memory; errors give the position of what isn't text."""

import codecs
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import IncrementalNewlineDecoder
from itertools import chain

from knnstore.corpus.options import ErrorPolicy, ReadCounts
from knnstore.wording import option

_REPLACEMENT = "\ufffd"
_REPLACEMENT_BYTES = _REPLACEMENT.encode()
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_GUESSED_BYTES = 2**12


def _hint() -> str:
    return f"use {option('errors', 'replace')} or {option('errors', 'skip')}"


class UnusableTextError(Exception):
    """A document that can't be used; raised only inside this package, where readers add the file name."""


def oversized(limit: int, kind: str = "") -> UnusableTextError:
    """Return the error for a document of more than ``limit`` bytes, of a kind such as `` of HTML``."""
    return UnusableTextError(f"more than {limit} bytes{kind}; split it or use {option('errors', 'skip')}")


def guess_encoding(data: bytes) -> str | None:
    """Return the kind of UTF-16 or UTF-32 without a byte order mark that ``data`` looks like; None if neither."""
    data = data[: min(len(data), _GUESSED_BYTES) // 4 * 4]
    rest = data.replace(b"\0", b"")
    if data.count(0) * 4 < len(data) and rest.isascii() and _is_readable(rest.decode()):
        return None  # ASCII with some NULs
    nuls = [data[lane::4].count(0) for lane in range(4)]
    whole = len(data) // 4
    looks = {
        "UTF-32LE": nuls[3] == whole,
        "UTF-32BE": nuls[0] == whole,
        "UTF-16LE": nuls[0] + nuls[2] == 0 < nuls[1] + nuls[3],
        "UTF-16BE": nuls[1] + nuls[3] == 0 < nuls[0] + nuls[2],
    }
    for encoding in (name for name, alike in looks.items() if alike and whole > 1):
        with suppress(UnicodeDecodeError):
            if _is_readable(codecs.getincrementaldecoder(encoding)().decode(data)):
                return encoding
    return None


def _is_readable(text: str) -> bool:
    return all(character.isprintable() or character.isspace() for character in text)


def decode_blocks(blocks: Iterable[bytes], errors: ErrorPolicy, counts: ReadCounts) -> Iterator[str]:
    """Decode a file like ``open(encoding="utf-8")``, block by block, and drop a leading BOM.

    Raises UnusableTextError, with the byte offset in the file, unless ``errors`` is ``replace``.
    """
    newlines = IncrementalNewlineDecoder(None, translate=True)
    start, rest, first = 0, b"", True
    for block in chain(blocks, [None]):
        data = rest + (block or b"")
        text, used = _decode(data, errors, counts, start=start, final=block is None)
        start, rest = start + used, data[used:]
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        yield newlines.decode(text, final=block is None)


def decode(data: bytes, errors: ErrorPolicy, counts: ReadCounts) -> str:
    """Decode all of ``data`` under the same rules, but keep line breaks and BOM."""
    return _decode(data, errors, counts, start=0, final=True)[0]


def clean(text: str, errors: ErrorPolicy, counts: ReadCounts) -> str:
    """Return ``text`` with NULs and lone surrogates, which JSON can contain, handled according to ``errors``."""
    match = _UNUSABLE.search(text)
    if match is None:
        return text
    if errors != "replace":
        kind = "a NUL" if match[0] == "\0" else "a lone surrogate, which UTF-8 can't encode,"
        raise UnusableTextError(f"the text has {kind} at character {match.start()}; {_hint()}")
    text, replaced = _UNUSABLE.subn(_REPLACEMENT, text)
    counts.replaced += replaced
    return text


def cut_pieces(texts: Iterable[str], piece_chars: int) -> Iterator[str]:
    """Join ``texts`` and cut the result into pieces of at most ``piece_chars``, independent of the input's boundaries.

    A cut is made before the last white space with a line break, else before the last with a space, else anywhere.
    """
    held = ""
    for text in texts:
        held += text
        start = 0
        while len(held) - start > piece_chars:
            end = _cut(held, start, start + piece_chars)
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def _decode(data: bytes, errors: ErrorPolicy, counts: ReadCounts, *, start: int, final: bool) -> tuple[str, int]:
    """Decode ``data``, which starts at byte ``start`` of the file; return the text and the number of bytes used."""
    nul = data.find(0)
    if nul >= 0 and start == 0 and (encoding := guess_encoding(data)):
        raise UnusableTextError(
            f"it looks like {encoding} without a byte order mark; convert it, for example with "
            f"iconv -f {encoding} -t UTF-8, or skip it with {option('errors', 'skip')}"
        )
    if errors != "replace":
        if nul >= 0:
            raise UnusableTextError(f"it looks binary (a NUL at byte {start + nul}); exclude it or {_hint()}")
        try:
            return codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            at = f"byte {start + error.start} ({data[error.start]:#04x})"
            raise UnusableTextError(f"{at} is not UTF-8; convert it or {_hint()}") from None
    text, used = codecs.utf_8_decode(data, "replace", final)
    text = text.replace("\0", _REPLACEMENT)
    # A U+FFFD that is in the data isn't a replacement. Its bytes, once complete, are always decoded, never left over.
    counts.replaced += text.count(_REPLACEMENT) - data.count(_REPLACEMENT_BYTES)
    return text, used


def _cut(text: str, start: int, limit: int) -> int:
    """Return the end of the piece from ``start`` that may extend to ``limit``; ``text`` is longer than that.

    The end is before white space, never inside it: tokenizers split there, so most cuts change no token.
    """
    for mark in "\n ":
        position = text.rfind(mark, start + 1, limit + 1)
        end = start + len(text[start : max(position, start)].rstrip())
        if end > start:
            return end
    return limit
