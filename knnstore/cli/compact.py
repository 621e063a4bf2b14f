"""``knnstore compact``."""

import click

from knnstore.cli.options import (
    Workers,
    print_result,
    reporter_for,
    shared_options,
    store_option,
    store_root,
    workers_options,
)


@click.command()
@store_option
@click.option("--auto", is_flag=True, help="Only if there are many segments, or a tenth of the keys is removed.")
@click.option(
    "--most-segments", type=click.IntRange(1), default=8, show_default=True, help="How many segments --auto lets be."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")
@workers_options
@shared_options
def compact(
    as_json: bool,
    quiet: bool,
    *,
    memory: int,
    store: str | None,
    auto: bool,
    most_segments: int,
    dry_run: bool,
    workers: Workers,
) -> None:
    """Make one segment of all, and let removed documents leave the disk.

    Neither LM nor training: keys, codes and lists are copied, in bounded memory. The same command after an
    interruption goes on where it stopped. Earlier states can't be returned to after it.
    """
    from knnstore.datastore.store import Datastore
    from knnstore.living.compact import CompactOptions, plan_compaction
    from knnstore.living.compact import compact as run
    from knnstore.report.living import compact_text

    root, reporter = store_root(store), reporter_for(quiet)
    options = CompactOptions(auto=auto, most_segments=most_segments, memory=memory, workers=workers.count)
    if dry_run:
        planned = plan_compaction(Datastore(root), options)
        print_result(as_json, planned, compact_text(planned, planned=True))
        return
    with workers.runner(memory, reporter) as runner:
        report = run(root, options, runner, reporter)
    print_result(as_json, report, compact_text(report))
