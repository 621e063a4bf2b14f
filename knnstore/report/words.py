"""Words and lines that several reports share."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it brings torch along, and what is said of a store needs none
    from knnstore.score.result import Setting

_WIDTH = 100
_MARGIN = " " * 10


def wrapped(label: str, text: str) -> list[str]:
    """Lines of at most a hundred columns, the first led by a label."""
    return textwrap.wrap(text, _WIDTH, initial_indent=label.ljust(10), subsequent_indent=_MARGIN)


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


def shown_store(path: Path) -> str:
    """A store's path as its user would type it."""
    return str(path).removesuffix(".knnstore")


def setting_words(setting: "Setting") -> str:
    """k, λ and temperature, and those of a cache."""
    words = f"k {setting.k}, λ {setting.lambda_:g}, temperature {setting.temperature:g}"
    if not setting.cache:
        return words
    return f"{words}; cache of {setting.cache:,} tokens, μ {setting.cache_weight:g}, at {setting.cache_temperature:g}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
