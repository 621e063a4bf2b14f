"""``knnstore neighbours``."""

import sys
from typing import Any

import click

from knnstore.cli.options import model_options, result_options, store_option
from knnstore.cli.output import print_styled, show_json


@click.command()
@click.argument("text")
@store_option
@click.option("--source", metavar="TEXT", help="Of a seq2seq store: what TEXT begins to translate; TEXT may be ''.")
@click.option("--k", type=click.IntRange(1), default=8, show_default=True, help="How many.")
@click.option("--nprobe", type=int, help="Lists that the query searches. Default: the index's.")
@click.option("--exact", is_flag=True, help="Search every key; needs no index.")
@model_options
@result_options
def neighbours(as_json: bool, quiet: bool, text: str, store: str | None, k: int, **options: Any) -> None:
    """The stored contexts that are nearest to TEXT for the LM, and what followed each.

    TEXT is - to read it from the standard input. On a terminal its words are highlighted where they occur.
    """
    from knnstore.api import open
    from knnstore.report.neighbours import neighbours_json, neighbours_text

    text = sys.stdin.read() if text == "-" else text
    lm = {name: options.pop(name) for name in ("model", "device", "dtype", "allow_mismatch")}
    opened = open(store, **lm)
    found = opened.neighbours(text, k, **options)
    if as_json:
        show_json(neighbours_json(text, found))
        return
    print_styled(neighbours_text(text, found, lambda word: click.style(word, fg="yellow", bold=True)))
