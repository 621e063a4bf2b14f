"""``knnstore log`` and ``knnstore restore``."""

import click

from knnstore.cli.options import json_option, print_result, store_option, store_root


@click.command()
@store_option
@json_option
def log(as_json: bool, store: str | None) -> None:
    """List the changes to a store: who, when and what."""
    from knnstore.cli.report.living import log_text
    from knnstore.datastore.history import load_history

    history = load_history(store_root(store))
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
    from knnstore.living.restore import restore as run

    report = run(store_root(store), state)
    print_result(as_json, report, restore_text(report))
