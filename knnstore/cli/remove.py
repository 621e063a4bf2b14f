"""``knnstore remove``."""

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
@click.option(
    "--document",
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
def remove(as_json: bool, quiet: bool, **options: Any) -> None:
    """Remove documents from a store, so that no search finds them.

    They stay on disk until the next 'knnstore compact', or are deleted immediately with --now.
    """
    from knnstore.cli.report.living import remove_text
    from knnstore.operations.remove import remove as run

    removal = run(**options, reporter=reporter_for(quiet))
    print_result(as_json, removal.removed, remove_text(removal.removed, removal.compacted))
