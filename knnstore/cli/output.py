"""The only place that prints for a command. Progress goes through ``knnstore.progress``."""

import os
import sys

import click

from knnstore.printing import escaped


def show(text: str, *, err: bool = False) -> None:
    """A line on stdout, or stderr if ``err``, without what could act on a terminal."""
    click.echo(escaped(text), err=err)


def print_styled(text: str, *, newline: bool = True) -> None:
    """Text with styles of ours on stdout at once: without them where it is no terminal, or $NO_COLOR is set.

    What comes from elsewhere has to be escaped before it is styled.
    """
    click.echo(text, nl=newline, color=False if os.environ.get("NO_COLOR") else None)
    sys.stdout.flush()
