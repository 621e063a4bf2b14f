"""``knnstore score``."""

from typing import Any

import click

from knnstore.cli.options import (
    OutputFile,
    cluster_options,
    lm_options,
    pair_options,
    reporter_for,
    shared_options,
    stores_option,
)
from knnstore.cli.output import show, show_json


@click.command()
@stores_option
@click.option("--text", multiple=True, metavar="PATH…", help="Text to score. Default: the held-out documents.")
@click.argument("more", nargs=-1, metavar="")
@pair_options
@click.option("--k", type=int, help="Number of neighbours. Default: tuned, up to 1024.")
@click.option("--lambda", "lambda_", type=float, help="Weight of the store in the mixture. Default: tuned.")
@click.option("--temperature", type=float, help="Divisor of the distances. Default: tuned.")
@click.option("--nprobe", type=int, help="Lists searched per query. Default: the index's.")
@click.option("--exact", is_flag=True, help="Search every key; needs no index.")
@click.option("--quantised", is_flag=True, help="Compute distances from the PQ codes instead of the keys.")
@click.option(
    "--only", multiple=True, metavar="GLOB|SHARE…", help="Search only these documents, or this share of the keys (10%)."
)
@click.option("--without", multiple=True, metavar="GLOB|SHARE…", help="Exclude these documents from the search.")
@click.option("--exclude-overlap", is_flag=True, help="Exclude documents that repeat the text from the search.")
@click.option(
    "--cache", type=int, default=0, metavar="TOKENS", help="Also search the last TOKENS of the scored document."
)
@click.option("--cache-weight", type=float, help="Weight of the cache in the mixture. Default: tuned.")
@click.option("--cache-temperature", type=float, help="Divisor of the cache's distances. Default: tuned.")
@click.option(
    "--tuned/--retune",
    default=None,
    help="Require the setting stored by 'knnstore tune', or tune again. Default: the stored one, if any fits.",
)
@click.option(
    "--adaptive/--constant",
    default=None,
    help="Weight per token from a gate, or one constant weight. Default: the gate, if the stored setting has one.",
)
@click.option("--save-neighbours", type=OutputFile(), metavar="FILE", help="Write a Parquet file for 'knnstore tune'.")
@click.option(
    "--report",
    type=OutputFile(),
    metavar="FILE",
    help="Write an HTML page: tuning surfaces, documents, calibration, example tokens.",
)
@click.option("--per-token", type=OutputFile(), metavar="FILE", help="Write a Parquet file with one row per token.")
@cluster_options
@lm_options
@shared_options
def score(as_json: bool, quiet: bool, text: tuple[str, ...], more: tuple[str, ...], **options: Any) -> None:
    """Measure the perplexity of a text with and without the store.

    Unset k, λ and temperature come from 'knnstore tune'; without a stored setting, they are tuned on half of the
    documents and the result is reported on the other half. For a store made with --task seq2seq, the perplexity is that
    of the targets given their sources, from --source and --target or from pairs in the files of --text.
    """
    from knnstore.cli.report.score import score_text
    from knnstore.operations.score import score as run

    if more and not text:
        raise click.UsageError(f"Got unexpected arguments: {' '.join(more)}")
    report = run(options.pop("store"), text=(*text, *more), **options, reporter=reporter_for(quiet))
    if options["report"]:
        from knnstore.cli.report.page import write_page

        write_page(report, options["report"])
    if as_json:
        show_json(report.to_json())
    else:
        show(score_text(report))
