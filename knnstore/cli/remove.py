"""``knnstore remove``."""

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
    "--document",
    "patterns",
    multiple=True,
    required=True,
    metavar="GLOB|ID…",
    help="Paths, ids or PATH#ID; * crosses folders; FOLDER/ means all below.",
)
@click.option("--note", default="", help="Why, for the log. It is kept for good: no personal data.")
@click.option("--now", is_flag=True, help="Compact at once, so that it leaves the disk as well.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; do nothing.")
@workers_options
@shared_options
def remove(
    as_json: bool,
    quiet: bool,
    *,
    memory: int,
    store: str | None,
    patterns: tuple[str, ...],
    note: str,
    now: bool,
    dry_run: bool,
    workers: Workers,
) -> None:
    """Take documents out of a store: no search finds them from now on.

    They leave the disk with the next 'knnstore compact', or at once with --now.
    """
    from knnstore.datastore.store import Datastore
    from knnstore.living.compact import CompactOptions, compact
    from knnstore.living.remove import plan_removal
    from knnstore.living.remove import remove as run
    from knnstore.report.living import remove_text

    root = store_root(store)
    if dry_run:
        planned = plan_removal(Datastore(root), patterns)
        print_result(as_json, planned, remove_text(planned, None))
        return
    report, compacted = run(root, patterns, note), None
    if now:
        options, reporter = CompactOptions(memory=memory, workers=workers.count), reporter_for(quiet)
        with workers.runner(memory, reporter) as runner:
            compacted = compact(root, options, runner, reporter)
    print_result(as_json, report, remove_text(report, compacted))
