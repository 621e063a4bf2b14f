"""``knnstore attribute``."""

from typing import Any

import click

from knnstore.cli.options import (
    mixture_options,
    model_options,
    pair_options,
    reading_options,
    reporter_for,
    result_options,
    store_option,
)
from knnstore.cli.output import show, show_json


@click.command()
@store_option
@click.option("--text", multiple=True, metavar="PATH…", help="Text to attribute. Default: the held-out documents.")
@click.argument("more", nargs=-1, metavar="")
@pair_options
@mixture_options
@reading_options
@model_options
@result_options
def attribute(
    as_json: bool, quiet: bool, store: str | None, text: tuple[str, ...], more: tuple[str, ...], **options: Any
) -> None:
    """Show which documents contributed to the probability of a text.

    Prints a table with one row per document and one for the LM; the shares add up to 100 %.
    """
    from knnstore.api import open
    from knnstore.cli.report.attribution import attribution_json, attribution_text
    from knnstore.scoring.options import ScoreOptions

    if more and not text:
        raise click.UsageError(f"Got unexpected arguments: {' '.join(more)}")
    lm = {name: options.pop(name) for name in ("model", "device", "dtype", "allow_mismatch")}
    opened = open(store, **lm)
    pairs = ("source", "target", "source_field", "target_field")
    named = (*pairs, "text_field", "errors", "include", "exclude", "follow_links")
    reading = ScoreOptions(text=(*text, *more), **{name: options.pop(name) for name in named})
    joined = opened.joined(**options)
    result = opened.attribute(reading, joined=joined, reporter=reporter_for(quiet))
    if as_json:
        show_json(attribution_json(result))
    else:
        show(attribution_text(result))
