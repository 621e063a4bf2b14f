"""``knnstore ingest``."""

from typing import Any

import click

from knnstore.cli.options import (
    cluster_options,
    complete_store,
    lm_options,
    pair_options,
    print_result,
    reporter_for,
    shared_options,
    store_cache_option,
)


@click.command()
@click.option("--corpus", multiple=True, metavar="PATH…", help="Folders, files or globs to read.")
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--task",
    type=click.Choice(["causal", "seq2seq"]),
    default="causal",
    show_default=True,
    help="causal: texts; seq2seq: pairs of texts for an encoder-decoder model (T5, BART, Marian).",
)
@pair_options
@click.option(
    "--store", shell_complete=complete_store, help="Name, path or URL of the store. Default: named after the corpus."
)
@store_cache_option
@click.option("--context", type=click.IntRange(1), help="Window length in tokens. Default: the LM's own, at most 1024.")
@click.option("--stride", type=click.IntRange(1), help="Tokens scored per window. Default: half the context.")
@click.option(
    "--key",
    type=click.Choice(["ffn-input", "hidden", "attention-input"]),
    default="ffn-input",
    show_default=True,
    help="Activations to store as keys.",
)
@click.option(
    "--key-dtype",
    type=click.Choice(["int8", "float16"]),
    default="int8",
    show_default=True,
    help="Type of the stored keys.",
)
@click.option(
    "--holdout", type=float, default=0.01, show_default=True, help="Share of documents held out for measurement."
)
@click.option(
    "--chunk-rows", type=click.IntRange(1), help="Keys per chunk; one task writes one chunk. Default: about 32 MiB."
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Number of Dask worker processes; 0: run in this process. Default: planned.",
)
@click.option(
    "--special-tokens",
    is_flag=True,
    help="Parse special tokens that are spelled out in the text. Default: treat them as ordinary text.",
)
@click.option("--prune", is_flag=True, help="Remove documents from the store that are no longer in the corpus.")
@click.option("--readmit", is_flag=True, help="Add documents again that 'knnstore remove' removed.")
@click.option("--overwrite", is_flag=True, help="Discard the store's contents and start over.")
@cluster_options
@lm_options
@shared_options
def ingest(as_json: bool, quiet: bool, corpus: tuple[str, ...], more: tuple[str, ...], **options: Any) -> None:
    """Run an LM over a corpus and store a key and a value per token.

    Reads .txt, .md, .jsonl, .ndjson, .json and .parquet, also compressed (.gz, .zst, .bz2, .xz); each file or record is
    a document. --include reads text files of any other type. Adds only new documents to an existing store. Run it again
    after an interruption to resume.

    With --task seq2seq, documents are pairs of texts: the lines of two parallel files, --source and --target, or
    records of --corpus: .tsv (two columns), .jsonl or .parquet with the named fields.
    """
    from knnstore.cli.report.ingest import ingest_text
    from knnstore.operations.ingest import ingest as run

    report = run((*corpus, *more), **options, reporter=reporter_for(quiet))
    print_result(as_json, report, ingest_text(report))
