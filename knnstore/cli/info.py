"""``knnstore info`` and ``knnstore stores``."""

from pathlib import Path

import click

from knnstore.cli.options import complete_store, print_result, store_option
from knnstore.cli.output import show, show_json


@click.command()
@click.argument("name", required=False, metavar="[STORE]", shell_complete=complete_store)
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def info(name: str | None, store: str | None, as_json: bool) -> None:
    """Describe a store: model, size, index, recall and health.

    Reads only records and file sizes, so it answers at once for a store of any size.
    """
    from knnstore.cli.report.info import info_text
    from knnstore.operations.info import info as run

    if name and store:
        raise click.UsageError(f"{name!r} and --store {store!r} both name a store: give only one")
    described = run(name or store)
    print_result(as_json, described, info_text(described))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=".")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")
def stores(folder: Path, as_json: bool) -> None:
    """List the stores in a folder (default: the current one)."""
    from knnstore.cli.report.info import stores_text
    from knnstore.operations.stores import stores as run
    from knnstore.records import to_json

    summaries = run(folder)
    if as_json:
        show_json([to_json(store) | {"path": str(store.path)} for store in summaries])
    else:
        show(stores_text(summaries))
