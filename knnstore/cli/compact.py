"""``knnstore compact``."""

import click

from knnstore.cli.options import print_result, reporter_for, shared_options, store_option, store_root


@click.command()
@store_option
@click.option("--auto", is_flag=True, help="Only if there are many segments, or a tenth of the keys is removed.")
@click.option(
    "--most-segments", type=click.IntRange(1), default=8, show_default=True, help="How many segments --auto lets be."
)
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Dask workers; 0: this process.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")
@shared_options
def compact(
    as_json: bool,
    quiet: bool,
    *,
    memory: int,
    store: str | None,
    auto: bool,
    most_segments: int,
    workers: int,
    dry_run: bool,
) -> None:
    """Make one segment of all, and let removed documents leave the disk.

    Neither LM nor training: keys, codes and lists are copied, in bounded memory. The same command after an
    interruption goes on where it stopped. Earlier states can't be returned to after it.
    """
    from knnstore.datastore.store import Datastore
    from knnstore.living.compact import CompactOptions, plan_compaction
    from knnstore.living.compact import compact as run
    from knnstore.report.living import compact_text
    from knnstore.scheduling import local_runner

    root = store_root(store)
    options = CompactOptions(auto=auto, most_segments=most_segments, memory=memory, workers=workers)
    if dry_run:
        planned = plan_compaction(Datastore(root), options)
        print_result(as_json, planned, compact_text(planned, planned=True))
        return
    with local_runner(workers) as runner:
        report = run(root, options, runner, reporter_for(quiet))
    print_result(as_json, report, compact_text(report))
