"""``knnstore score``."""

from typing import Any

import click

from knnstore.cli.options import (
    OutputFile,
    cluster_options,
    find_cluster,
    lm_options,
    open_store,
    pair_options,
    reporter_for,
    shared_options,
    stores_option,
)
from knnstore.cli.output import show, show_json


@click.command()
@stores_option
@click.option("--text", multiple=True, metavar="PATH…", help="Text to score. Default: the documents held out.")
@click.argument("more", nargs=-1, metavar="")
@pair_options
@click.option("--k", type=int, help="Neighbours. Default: tuned, up to 1024.")
@click.option("--lambda", "lambda_", type=float, help="Weight of the store in the mixture. Default: tuned.")
@click.option("--temperature", type=float, help="Divides the distances. Default: tuned.")
@click.option("--nprobe", type=int, help="Lists that a query searches. Default: the index's.")
@click.option("--exact", is_flag=True, help="Search every key; needs no index.")
@click.option("--quantised", is_flag=True, help="Take distances from the PQ codes, not from the keys.")
@click.option("--only", multiple=True, metavar="GLOB|SHARE…", help="Search these documents alone, or 10% of the keys.")
@click.option("--without", multiple=True, metavar="GLOB|SHARE…", help="Leave these documents out of the search.")
@click.option("--exclude-overlap", is_flag=True, help="Leave documents that repeat the text out of the search.")
@click.option("--cache", type=int, default=0, metavar="TOKENS", help="Remember the document's own last TOKENS as well.")
@click.option("--cache-weight", type=float, help="Weight of the cache in the mixture. Default: tuned.")
@click.option("--cache-temperature", type=float, help="Divides the cache's distances. Default: tuned.")
@click.option(
    "--tuned/--retune",
    default=None,
    help="Insist on what 'knnstore tune' stored, or tune anew. Default: what is stored, if it is and fits.",
)
@click.option(
    "--adaptive/--constant",
    default=None,
    help="Weigh each token by a gate, or all alike. Default: by the gate, if the stored setting has one.",
)
@click.option("--save-neighbours", type=OutputFile(), metavar="FILE", help="Write a Parquet file for 'knnstore tune'.")
@click.option(
    "--report",
    type=OutputFile(),
    metavar="FILE",
    help="Write an HTML page: surfaces, documents, calibration, telling tokens.",
)
@click.option("--per-token", type=OutputFile(), metavar="FILE", help="Write a Parquet file with a row for every token.")
@cluster_options
@lm_options
@shared_options
def score(as_json: bool, quiet: bool, text: tuple[str, ...], more: tuple[str, ...], **options: Any) -> None:
    """Perplexity of a text by the LM alone, and joined to the store.

    What is not given of k, λ and temperature is as 'knnstore tune' stored it; else it is tuned on half of the documents
    and reported on the others. Of a store made with --task seq2seq it is the perplexity of the targets given their
    sources: of --source and --target, or of pairs in the files of --text.
    """
    from knnstore.report.score import score_text
    from knnstore.score import ScoreOptions
    from knnstore.score import score as run

    if more and not text:
        raise click.UsageError(f"Got unexpected arguments: {' '.join(more)}")
    names, reporter = options.pop("store"), reporter_for(quiet)
    store, *beside = (open_store(name) for name in names or [None])
    cluster = find_cluster(options.pop("scheduler"), options.pop("scheduler_file"), None)
    settings = ScoreOptions(text=(*text, *more), **options)
    if cluster is None:
        report = run(settings, store, reporter, beside=beside)
    else:
        with cluster.runner(settings.memory, reporter) as runner:
            report = run(settings, store, reporter, runner, beside=beside)
    if options["report"]:
        from knnstore.report.page import write_page

        write_page(report, options["report"])
    if as_json:
        show_json(report.to_json())
    else:
        show(score_text(report))
