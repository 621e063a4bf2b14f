"""What a terminal can show: its width, the characters of its encoding, and commands to paste into it."""

import codecs
import io
import os
import re
import sys
import textwrap
from typing import TextIO

WIDTH = 100
"""Maximum number of columns of text, and the number without a terminal."""
MARGIN = 10
"""Columns of the label at the start of a line."""
_NARROWEST = 30
_PLAIN = str.maketrans(
    {
        **{"λ": "lambda", "μ": "mu", "×": "x", "÷": "/", "√": "sqrt ", "·": "*", "²": "^2", "→": "->", "≥": ">="},
        **{"…": "...", "–": "-", "—": "-", "−": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "▸": ">", "◂": "<"},
    }
)
_ERRORS = "knnstore.plain"
_LABEL = re.compile("[a-z]+ +")
# C0 except line breaks and tabs, DEL, C1, and the controls of text direction
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def columns(stream: TextIO | None = None) -> int:
    """Return the columns available on a stream (default: stdout), at most ``WIDTH``."""
    return max(_NARROWEST, min(WIDTH, _terminal_columns(stream or sys.stdout) or WIDTH))


def fits(width: int) -> bool:
    """Return whether lines of ``width`` columns fit stdout; without a terminal, all do."""
    return width <= (_terminal_columns(sys.stdout) or width)


def _terminal_columns(stream: TextIO) -> int | None:
    """Return the columns of a stream's terminal minus one, because some wrap at the last; None without a terminal."""
    try:
        return os.get_terminal_size(stream.fileno()).columns - 1
    except (OSError, ValueError):  # not a terminal, or not a file at all
        return None


def fit(text: str, stream: TextIO | None = None) -> str:
    """Return text with its labelled lines wrapped to the stream's terminal; without a terminal, the text unchanged.

    A line with a command to paste is kept whole: the terminal wraps it without adding line breaks to a copy.
    """
    if not (stream or sys.stdout).isatty():
        return text
    width = columns(stream)
    return "\n".join(_fitted(line, width) for line in text.split("\n"))


def _fitted(line: str, width: int) -> str:
    label = _LABEL.match(line)
    if len(line) <= width or label is None or label.end() != MARGIN or line.startswith("next "):
        return line
    margin = " " * MARGIN
    return textwrap.fill(
        line[MARGIN:], width, initial_indent=label[0], subsequent_indent=margin, break_on_hyphens=False
    )


def escaped(text: str) -> str:
    r"""Return text with control characters as escapes, such as ``\x1b``; line breaks and tabs stay.

    Text from files, stores and names must not move the cursor of a terminal or change its state.
    """
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)


def escaped_json(text: str) -> str:
    r"""Return a JSON text with control characters as JSON's own escapes, such as ``\u009b``."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def never_fail_on_characters(*streams: TextIO | None) -> None:
    """Make streams replace characters that their encoding lacks: ``λ`` by ``lambda``, others by escapes."""
    codecs.register_error(_ERRORS, _replacement)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _replacement(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def takes_any_character(stream: TextIO) -> bool:
    """Return whether the stream's encoding has every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
