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
@click.option(
    "--auto", is_flag=True, help="Compact only if there are many segments, or a tenth of the keys has been removed."
)
@click.option(
    "--most-segments",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Number of segments that --auto tolerates.",
)
@click.option("--dry-run", is_flag=True, help="Report what would be done and exit.")
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
    """Merge segments and delete removed documents from disk.

    Needs no LM and no training: keys, codes and lists are copied in bounded memory. Run it again after an interruption
    to resume. Afterwards the store can no longer be restored to an earlier state.
    """
    from knnstore.cli.report.living import compact_text
    from knnstore.datastore.store import Datastore
    from knnstore.living.compact import CompactOptions, plan_compaction
    from knnstore.living.compact import compact as run

    root = store_root(store)
    options = CompactOptions(auto=auto, most_segments=most_segments)
    if dry_run:
        planned = plan_compaction(Datastore(root), options)
        print_result(as_json, planned, compact_text(planned, planned=True))
        return
    with workers.job(memory, reporter_for(quiet)) as job:
        report = run(root, options, job)
    print_result(as_json, report, compact_text(report))
