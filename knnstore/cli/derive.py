"""``knnstore merge`` and ``knnstore subset``."""

from typing import Any

import click

from knnstore.cli.options import (
    complete_store,
    print_result,
    reporter_for,
    shared_options,
    store_cache_option,
    workers_options,
)

_overwrite = click.option("--overwrite", is_flag=True, help="Discard the new store's contents and start over.")


@click.command()
@click.argument("stores", shell_complete=complete_store, nargs=-1, required=True, metavar="STORE STORE…")
@click.option("--into", required=True, help="Name, path or URL of the new store.")
@_overwrite
@store_cache_option
@workers_options
@shared_options
def merge(as_json: bool, quiet: bool, **options: Any) -> None:
    """Merge stores of the same LM into one.

    The LM isn't run. A text that several stores hold is kept once.
    """
    from knnstore.cli.report.living import derive_text
    from knnstore.operations.merge import merge as run

    report = run(**options, reporter=reporter_for(quiet))
    print_result(as_json, report, derive_text(report))


@click.command()
@click.argument("store", shell_complete=complete_store, required=False)
@click.option("--into", required=True, help="Name, path or URL of the new store.")
@click.option("--sample", metavar="SHARE", help="Approximate share of the keys, in whole documents, e.g. 10%.")
@click.option(
    "--documents",
    multiple=True,
    metavar="GLOB…",
    help="Documents to keep: paths, ids or PATH#ID; FOLDER/ means everything below.",
)
@_overwrite
@store_cache_option
@workers_options
@shared_options
def subset(as_json: bool, quiet: bool, **options: Any) -> None:
    """Make a store from some of another store's documents.

    The LM isn't run. A larger sample contains every document of a smaller one, and all held-out documents are included.
    To compare sizes without making stores, use 'knnstore score --only'.
    """
    from knnstore.cli.report.living import derive_text
    from knnstore.operations.subset import subset as run

    report = run(**options, reporter=reporter_for(quiet))
    print_result(as_json, report, derive_text(report))
