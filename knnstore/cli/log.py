"""``knnstore log`` and ``knnstore restore``."""

import click

from knnstore.cli.options import json_option, print_result, store_option


@click.command()
@store_option
@json_option
def log(as_json: bool, store: str | None) -> None:
    """List the changes to a store: who, when and what."""
    from knnstore.cli.report.living import log_text
    from knnstore.operations.log import log as run

    history = run(store)
    print_result(as_json, history, log_text(history))


@click.command()
@store_option
@click.option(
    "--state",
    type=click.IntRange(0),
    help="State to restore, from the log. Default: the last one with different documents.",
)
@json_option
def restore(as_json: bool, store: str | None, state: int | None) -> None:
    """Restore the documents of an earlier state.

    This is possible until the store is compacted. Repeating the command changes nothing; to go further back, give
    --state.
    """
    from knnstore.cli.report.living import restore_text
    from knnstore.operations.restore import restore as run

    report = run(store, state=state)
    print_result(as_json, report, restore_text(report))
