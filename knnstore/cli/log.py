"""``knnstore log`` and ``knnstore restore``."""

import click

from knnstore.cli.options import json_option, print_result, store_option, store_root


@click.command()
@store_option
@json_option
def log(as_json: bool, store: str | None) -> None:
    """List the changes of a store: who, when and what."""
    from knnstore.datastore.history import load_history
    from knnstore.report.living import log_text

    history = load_history(store_root(store))
    print_result(as_json, history, log_text(history))


@click.command()
@store_option
@click.option("--state", type=click.IntRange(0), help="Which state of the log. Default: the last with other documents.")
@json_option
def restore(as_json: bool, store: str | None, state: int | None) -> None:
    """Return to the documents of an earlier state, until a compaction forgets it.

    Repeated, it changes nothing: to go further back, give --state.
    """
    from knnstore.living.restore import restore as run
    from knnstore.report.living import restore_text

    report = run(store_root(store), state)
    print_result(as_json, report, restore_text(report))
