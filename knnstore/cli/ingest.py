"""``knnstore ingest``."""

from dataclasses import replace
from typing import Any

import click

from knnstore.cli.options import (
    cluster_options,
    complete_store,
    find_cluster,
    lm_options,
    pair_options,
    print_result,
    reporter_for,
    shared_options,
    store_cache_option,
)


@click.command()
@click.option("--corpus", multiple=True, metavar="PATH…", help="Folders, files or globs of text.")
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--task",
    type=click.Choice(["causal", "seq2seq"]),
    default="causal",
    show_default=True,
    help="seq2seq: pairs of texts, by an encoder-decoder model (T5, BART, Marian).",
)
@pair_options
@click.option(
    "--store", shell_complete=complete_store, help="Name, path or URL of the store. Default: named after the corpus."
)
@store_cache_option
@click.option("--context", type=click.IntRange(1), help="Window, in tokens. Default: the LM's own, at most 1024.")
@click.option("--stride", type=click.IntRange(1), help="Tokens scored a window. Default: half of the context.")
@click.option(
    "--key",
    type=click.Choice(["ffn-input", "hidden", "attention-input"]),
    default="ffn-input",
    show_default=True,
    help="Which activations are the keys.",
)
@click.option("--key-dtype", type=click.Choice(["int8", "float16"]), default="int8", show_default=True)
@click.option(
    "--holdout", type=float, default=0.01, show_default=True, help="Share of documents kept out to measure on."
)
@click.option("--chunk-rows", type=click.IntRange(1), help="Keys a chunk and a task. Default: about 32 MiB.")
@click.option("--workers", type=click.IntRange(0), help="Dask worker processes; 0 works in this one. Default: planned.")
@click.option(
    "--special-tokens",
    is_flag=True,
    help="Make tokens of special tokens that are spelled in the text. Default: they are ordinary text.",
)
@click.option("--prune", is_flag=True, help="Remove documents from the store that the corpus has no more.")
@click.option("--readmit", is_flag=True, help="Take in again what 'knnstore remove' took out.")
@click.option("--overwrite", is_flag=True, help="Discard what the store holds and start anew.")
@cluster_options
@lm_options
@shared_options
def ingest(as_json: bool, quiet: bool, corpus: tuple[str, ...], more: tuple[str, ...], **options: Any) -> None:
    """Run a corpus through an LM and store a key and a value for every token.

    .txt, .md, .jsonl, .ndjson, .json and .parquet, also compressed (.gz, .zst, .bz2, .xz); each file or record is a
    document. --include takes text files of any other type. The same command after an interruption goes on where it
    stopped. Into a store that is there it adds what that doesn't have.

    With --task seq2seq documents are pairs of texts: the lines of two parallel files, --source and --target, or records
    of --corpus, .tsv (two columns), .jsonl or .parquet with the fields that are named.
    """
    from knnstore.ingest import IngestOptions, check_memory_first, choose_workers
    from knnstore.ingest import ingest as run
    from knnstore.report.ingest import ingest_text
    from knnstore.scheduling import available_cores, local_runner, visible_gpus

    workers, reporter = options.pop("workers"), reporter_for(quiet)
    cluster = find_cluster(options.pop("scheduler"), options.pop("scheduler_file"), workers)
    settings = IngestOptions(corpus=(*corpus, *more), **options, workers=workers or 0)
    gpus = visible_gpus() if settings.device in ("auto", "cuda") else ()
    if workers is None and cluster is None:
        settings = replace(settings, workers=len(gpus)) if gpus else choose_workers(settings, available_cores())
    check_memory_first(settings)
    with cluster.runner(settings.memory, reporter) if cluster else local_runner(settings.workers, gpus) as runner:
        report = run(settings, runner, reporter)
    print_result(as_json, report, ingest_text(report))
