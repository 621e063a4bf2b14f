"""``knnstore compact``."""

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
def compact(as_json: bool, quiet: bool, **options: Any) -> None:
    """Merge segments and delete removed documents from disk.

    Needs no LM and no training: keys, codes and lists are copied in bounded memory. Run it again after an interruption
    to resume. Afterwards the store can no longer be restored to an earlier state.
    """
    from knnstore.cli.report.living import compact_text
    from knnstore.operations.compact import compact as run

    report = run(**options, reporter=reporter_for(quiet))
    print_result(as_json, report, compact_text(report, planned=options["dry_run"]))
