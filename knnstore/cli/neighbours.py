"""``knnstore neighbours``."""

import sys
from typing import Any

import click

from knnstore.cli.options import model_options, result_options, store_option
from knnstore.cli.output import print_styled, show_json


@click.command()
@click.argument("text")
@store_option
@click.option(
    "--source", metavar="TEXT", help="Seq2seq: source text of which TEXT is the start of a translation; TEXT may be ''."
)
@click.option("--k", type=click.IntRange(1), default=8, show_default=True, help="Number of neighbours.")
@click.option("--nprobe", type=int, help="Lists searched. Default: the index's.")
@click.option("--exact", is_flag=True, help="Search every key; needs no index.")
@model_options
@result_options
def neighbours(as_json: bool, quiet: bool, text: str, store: str | None, k: int, **options: Any) -> None:
    """Show the stored contexts nearest to TEXT and what followed.

    Give - as TEXT to read it from standard input. A terminal highlights the words of TEXT in the results.
    """
    from knnstore.api import open
    from knnstore.cli.report.neighbours import neighbours_json, neighbours_text

    text = sys.stdin.read() if text == "-" else text
    lm = {name: options.pop(name) for name in ("model", "device", "dtype", "allow_mismatch")}
    opened = open(store, **lm)
    nearest = opened.neighbours(text, k, **options)
    if as_json:
        show_json(neighbours_json(text, nearest))
        return
    print_styled(neighbours_text(text, nearest, lambda word: click.style(word, fg="yellow", bold=True)))
