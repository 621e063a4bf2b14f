"""Phrases and lines shared by several reports."""

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from knnstore.terminal import MARGIN, columns, fits

if TYPE_CHECKING:  # the import loads torch, which a description of a store doesn't need
    from knnstore.mixing.setting import Setting

_MARGIN = " " * MARGIN


def wrapped(label: str, text: str) -> list[str]:
    """Return lines that fit the terminal; the first starts with a label."""
    return textwrap.wrap(text, columns(), initial_indent=label.ljust(MARGIN), subsequent_indent=_MARGIN)


def marked(context: str, token: str) -> str:
    """Return a context with the token at its end marked."""
    glue = " " if token[:1].isspace() or context[-1:].isspace() else ""
    return f"… {one_line(context)}{glue}▸{one_line(token)}◂"


def one_line(text: str) -> str:
    """Return text on one line, without control characters, which must not reach the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def printable(text: str) -> str:
    """Return text without control characters, except line breaks and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def quoted(token: str) -> str:
    """Return a token in quotation marks."""
    return f"“{one_line(token) or repr(token)[1:-1]}”"


def documents(count: int, kind: str = "") -> str:
    """Return ``1 document``, ``2 documents`` or, of a kind, ``2 other documents``."""
    return f"{count:,} {kind}document{'' if count == 1 else 's'}"


def gain_words(percent: float) -> str:
    """Return the effect of a store on the perplexity, from the reduction in percent."""
    if abs(percent) < 0.05:
        return "no gain: same perplexity as the LM alone"
    if percent < 0:
        return f"no gain: {-percent:.1f} % higher perplexity than the LM alone"
    return f"{percent:.1f} % lower perplexity"


def shown_store(path: Path | str) -> str:
    """Return a store's path as it would be typed in a shell."""
    return shlex.quote(str(path).removesuffix(".knnstore"))


def setting_words(setting: "Setting") -> str:
    """Return k, λ and temperature, and the setting of the cache."""
    words = f"k {setting.k}, λ {setting.lambda_:g}, temperature {setting.temperature:g}"
    if not setting.cache:
        return words
    cache = f"cache of {setting.cache:,} tokens, μ {setting.cache_weight:g}"
    return f"{words}; {cache}, temperature {setting.cache_temperature:g}"


def table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a table; the columns in ``left`` are flush left, the others flush right.

    If the terminal is too narrow for it, each row becomes several lines, labelled with the header.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if not fits(sum(widths) + 2 * (len(widths) - 1)):
        return [line for row in rows[1:] for line in _lines_of_cells(rows[0], row)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _lines_of_cells(header: Sequence[str], row: Sequence[str]) -> list[str]:
    width = max(len(name) for name in header)
    cells = zip(header[1:], row[1:], strict=True)
    return [row[0], *(f"  {name:<{width}}  {cell}" for name, cell in cells if cell)]
