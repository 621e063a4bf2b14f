"""All printing of the commands, except progress, which goes through ``knnstore.progress``."""

import json
import os
import sys
from typing import Any

import click

from knnstore.terminal import escaped, escaped_json, fit, takes_any_character


def show(text: str, *, err: bool = False) -> None:
    """Print text for people on stdout, or stderr if ``err``: fitted to the terminal, control characters escaped."""
    show_line(fit(text, sys.stderr if err else sys.stdout), err=err)


def show_line(text: str, *, err: bool = False) -> None:
    """Print text unchanged except for control characters, which are escaped."""
    click.echo(escaped(text), err=err)


def show_json(value: Any) -> None:
    """Print one JSON object on stdout, escaping characters that its encoding lacks."""
    click.echo(escaped_json(json.dumps(value, ensure_ascii=not takes_any_character(sys.stdout), default=str)))


def print_styled(text: str, *, newline: bool = True) -> None:
    """Print styled text on stdout and flush it; without styles if that isn't a terminal or $NO_COLOR is set.

    Text from elsewhere has to be escaped before it is styled.
    """
    click.echo(text, nl=newline, color=False if os.environ.get("NO_COLOR") else None)
    sys.stdout.flush()
