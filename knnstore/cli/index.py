"""``knnstore index``."""

from typing import Any

import click

from knnstore.cli.options import (
    print_result,
    reporter_for,
    shared_options,
    store_option,
    workers_options,
)


@click.command()
@store_option
@click.option("--nlist", type=int, help="Number of inverted lists. Default: chosen from the number of keys.")
@click.option("--pq-bytes", type=int, help="Bytes per PQ code, a divisor of the key dimension. Default: planned.")
@click.option("--rotation", metavar="OPQ|PCA64", help="Rotation before coding; a number sets the dimensions kept.")
@click.option("--train-sample", type=int, help="Number of training keys. Default: 40 per list.")
@click.option(
    "--nprobe", type=int, help="Lists searched per query, stored as default. Default: 32, more if they are short."
)
@click.option("--overwrite", is_flag=True, help="Rebuild an existing index.")
@click.option(
    "--drop-keys",
    is_flag=True,
    help="Keep only the copy of the keys in the lists, which halves the disk space.",
)
@click.option("--dry-run", is_flag=True, help="Report the plan, with time, memory and disk, and exit.")
@workers_options
@shared_options
def index(as_json: bool, quiet: bool, store: str | None, **options: Any) -> None:
    """Build the IVF-PQ index of a store.

    Run it again after an interruption to resume.
    """
    from knnstore.cli.report.index import index_text
    from knnstore.indexing.job import IndexReport
    from knnstore.operations.index import index as run
    from knnstore.operations.shared import find_store

    report = run(store, **options, reporter=reporter_for(quiet))
    text = index_text(report, find_store(store)) if isinstance(report, IndexReport) else "\n".join(report.sentences)
    print_result(as_json, report, text)
