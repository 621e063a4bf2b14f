"""``knnstore index``."""

from dataclasses import replace
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
@click.option("--nlist", type=int, help="Number of inverted lists. Default: chosen from the number of keys.")
@click.option("--pq-bytes", type=int, help="Bytes per PQ code, a divisor of the key dimension. Default: planned.")
@click.option("--rotation", metavar="OPQ|PCA64", help="Rotation before coding; a number sets the dimensions kept.")
@click.option("--train-sample", type=int, help="Number of training keys. Default: 40 per list.")
@click.option(
    "--nprobe", type=int, help="Lists searched per query, stored as default. Default: 32, more if they are short."
)
@click.option(
    "--workers", type=click.IntRange(0), help="Number of Dask worker processes. Default: 0, run in this process."
)
@click.option("--overwrite", is_flag=True, help="Rebuild an existing index.")
@click.option(
    "--drop-keys",
    is_flag=True,
    help="Keep only the copy of the keys in the lists, which halves the disk space.",
)
@click.option("--dry-run", is_flag=True, help="Report the plan, with time, memory and disk, and exit.")
@cluster_options
@shared_options
def index(as_json: bool, quiet: bool, store: str | None, **options: Any) -> None:
    """Build the IVF-PQ index of a store.

    Run it again after an interruption to resume.
    """
    from knnstore.build import IndexOptions, build_index, dry_run
    from knnstore.cli.report.index import index_text
    from knnstore.scheduling import Job, local_runner

    opened, reporter = open_store(store), reporter_for(quiet)
    workers, memory, only_say = options.pop("workers"), options.pop("memory"), options.pop("dry_run")
    cluster = find_cluster(options.pop("scheduler"), options.pop("scheduler_file"), workers)
    settings, job = IndexOptions(**options), Job(reporter=reporter, memory=memory, workers=workers or 0)
    if only_say:
        planned = dry_run(opened, settings, job)
        print_result(as_json, planned, "\n".join(planned.sentences))
        return
    with cluster.runner(memory, reporter) if cluster else local_runner(job.workers) as runner:
        report = build_index(opened, settings, replace(job, runner=runner))
    print_result(as_json, report, index_text(report, opened.root))
