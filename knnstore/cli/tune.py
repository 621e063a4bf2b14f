"""``knnstore tune``."""

from typing import Any

import click

from knnstore.cli.options import complete_store, reporter_for, store_cache_option
from knnstore.cli.output import show, show_json


@click.command()
@click.argument("file")
@click.option(
    "--store", shell_complete=complete_store, help="Store to keep the result in. Default: the only one in this folder."
)
@store_cache_option
@click.option("--k", type=int, help="Number of neighbours. Default: tuned.")
@click.option("--lambda", "lambda_", type=float, help="Weight of the store in the mixture. Default: tuned.")
@click.option("--temperature", type=float, help="Divisor of the distances. Default: tuned.")
@click.option(
    "--adaptive/--constant",
    default=None,
    help="Use a gate that sets the weight per token, or none. Default: a gate if it is better on unseen documents.",
)
@click.option("--dry-run", is_flag=True, help="Print the result without storing it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--quiet", is_flag=True, help="Print only the result and errors.")
def tune(file: str, store: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Find the best mixture from saved neighbours and store it.

    'knnstore score --save-neighbours FILE' writes FILE; neither the LM nor a search is run. 'knnstore score' uses the
    stored mixture by default.
    """
    from knnstore.cli.report.tune import tune_json, tune_text
    from knnstore.operations.tune import tune as run

    report = run(file, store, **options, reporter=reporter_for(quiet))
    if as_json:
        show_json(tune_json(report))
    else:
        show(tune_text(report))
