"""``knnstore index``."""

from typing import Any

import click

from knnstore.cli.options import (
    cluster_options,
    find_cluster,
    open_store,
    print_result,
    reporter_for,
    shared_options,
    store_option,
)


@click.command()
@store_option
@click.option("--nlist", type=int, help="Inverted lists. Default: planned from the number of keys.")
@click.option("--pq-bytes", type=int, help="Bytes of a key's code, a divisor of its width. Default: planned.")
@click.option("--rotation", metavar="OPQ|PCA64", help="Rotate before coding; a number keeps so many dimensions.")
@click.option("--train-sample", type=int, help="Keys to train on. Default: 40 a list.")
@click.option(
    "--nprobe", type=int, help="Lists that a query searches by default. Default: 32, more where they are short."
)
@click.option("--workers", type=click.IntRange(0), help="Dask worker processes. Default: 0, this process.")
@click.option("--overwrite", is_flag=True, help="Build it anew even if it is there.")
@click.option("--drop-keys", is_flag=True, help="Keep the keys in the lists alone once these hold them: half the disk.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, the time, memory and disk; do nothing.")
@cluster_options
@shared_options
def index(as_json: bool, quiet: bool, store: str | None, **options: Any) -> None:
    """Build the IVF-PQ index of a store.

    The same command after an interruption goes on where it stopped.
    """
    from knnstore.build import IndexOptions, build_index, dry_run
    from knnstore.report.index import index_text
    from knnstore.scheduling import local_runner

    opened, reporter = open_store(store), reporter_for(quiet)
    workers, only_say = options.pop("workers"), options.pop("dry_run")
    cluster = find_cluster(options.pop("scheduler"), options.pop("scheduler_file"), workers)
    settings = IndexOptions(**options, workers=workers or 0)
    if only_say:
        planned = dry_run(opened, settings)
        print_result(as_json, planned, "\n".join(planned.sentences))
        return
    with cluster.runner(settings.memory, reporter) if cluster else local_runner(settings.workers) as runner:
        report = build_index(opened, settings, runner, reporter)
    print_result(as_json, report, index_text(report, opened.root))
