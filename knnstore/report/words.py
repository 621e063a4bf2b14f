"""Words and lines that several reports share."""

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from knnstore.terminal import MARGIN, columns, fits

if TYPE_CHECKING:  # it brings torch along, and what is said of a store needs none
    from knnstore.mixing.setting import Setting

_MARGIN = " " * MARGIN


def wrapped(label: str, text: str) -> list[str]:
    """Return lines that fit the terminal, the first led by a label."""
    return textwrap.wrap(text, columns(), initial_indent=label.ljust(MARGIN), subsequent_indent=_MARGIN)


def marked(context: str, token: str) -> str:
    """A token at the end of its context, pointed out."""
    glue = " " if token[:1].isspace() or context[-1:].isspace() else ""
    return f"… {one_line(context)}{glue}▸{one_line(token)}◂"


def one_line(text: str) -> str:
    """A text on one line, without control characters: a text's own must not reach the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def printable(text: str) -> str:
    """A text as it is but for control characters; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def quoted(token: str) -> str:
    """A token in quotes."""
    return f"“{one_line(token) or repr(token)[1:-1]}”"


def documents(count: int) -> str:
    """``1 document``, ``2 documents``."""
    return f"{count:,} document{'' if count == 1 else 's'}"


def gain_words(percent: float) -> str:
    """Return what a store does to the perplexity, by how much it lowers it in percent."""
    if abs(percent) < 0.05:
        return "no gain: the perplexity is that of the LM alone"
    if percent < 0:
        return f"no gain: {-percent:.1f} % higher perplexity than the LM alone"
    return f"{percent:.1f} % lower perplexity"


def shown_store(path: Path | str) -> str:
    """Return a store's path as its user would type it in a shell."""
    return shlex.quote(str(path).removesuffix(".knnstore"))


def setting_words(setting: "Setting") -> str:
    """k, λ and temperature, and those of a cache."""
    words = f"k {setting.k}, λ {setting.lambda_:g}, temperature {setting.temperature:g}"
    if not setting.cache:
        return words
    return f"{words}; cache of {setting.cache:,} tokens, μ {setting.cache_weight:g}, at {setting.cache_temperature:g}"


def table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a table; the columns in ``left`` are flush left, the others flush right.

    Where the terminal is too narrow for it, each row becomes a few lines of its own, with the header's words.
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
