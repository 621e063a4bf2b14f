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
    help="Documents: paths, ids or PATH#ID; * also matches /; FOLDER/ means everything below.",
)
@click.option("--note", default="", help="Reason, for the log. It is kept permanently: no personal data.")
@click.option("--now", is_flag=True, help="Compact immediately, so that the documents leave the disk too.")
@click.option("--dry-run", is_flag=True, help="Report what would be removed and exit.")
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
    """Remove documents from a store, so that no search finds them.

    They stay on disk until the next 'knnstore compact', or are deleted immediately with --now.
    """
    from knnstore.cli.report.living import remove_text
    from knnstore.datastore.store import Datastore
    from knnstore.living.compact import CompactOptions, compact
    from knnstore.living.remove import plan_removal
    from knnstore.living.remove import remove as run

    root = store_root(store)
    if dry_run:
        planned = plan_removal(Datastore(root), patterns)
        print_result(as_json, planned, remove_text(planned, None))
        return
    report, compacted = run(root, patterns, note), None
    if now:
        with workers.job(memory, reporter_for(quiet)) as job:
            compacted = compact(root, CompactOptions(), job)
    print_result(as_json, report, remove_text(report, compacted))
