"""``knnstore remove``."""

import click

from knnstore.cli.options import print_result, reporter_for, shared_options, store_option, store_root


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
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Dask workers, for --now.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; do nothing.")
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
    workers: int,
    dry_run: bool,
) -> None:
    """Take documents out of a store: no search finds them from now on.

    They leave the disk with the next 'knnstore compact', or at once with --now.
    """
    from knnstore.datastore.store import Datastore
    from knnstore.living.compact import CompactOptions, compact
    from knnstore.living.remove import plan_removal
    from knnstore.living.remove import remove as run
    from knnstore.report.living import remove_text
    from knnstore.scheduling import local_runner

    root = store_root(store)
    if dry_run:
        planned = plan_removal(Datastore(root), patterns)
        print_result(as_json, planned, remove_text(planned, None))
        return
    report, compacted = run(root, patterns, note), None
    if now:
        with local_runner(workers) as runner:
            compacted = compact(root, CompactOptions(memory=memory, workers=workers), runner, reporter_for(quiet))
    print_result(as_json, report, remove_text(report, compacted))
