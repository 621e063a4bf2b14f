"""``knnstore tune``."""

from typing import Any

import click

from knnstore.cli.options import complete_store, open_store, reporter_for, store_cache_option
from knnstore.cli.output import show, show_json


@click.command()
@click.argument("file")
@click.option(
    "--store", shell_complete=complete_store, help="The store that keeps the result. Default: the only one here."
)
@store_cache_option
@click.option("--k", type=int, help="Neighbours. Default: tuned.")
@click.option("--lambda", "lambda_", type=float, help="Weight of the store in the mixture. Default: tuned.")
@click.option("--temperature", type=float, help="Divides the distances. Default: tuned.")
@click.option(
    "--adaptive/--constant",
    default=None,
    help="Keep a gate that weighs each token, or none. Default: if it is better on documents that it hasn't seen.",
)
@click.option("--dry-run", is_flag=True, help="Print what was found; store nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress, no sentences; only the result and errors.")
def tune(file: str, store: str | None, as_json: bool, quiet: bool, dry_run: bool, **options: Any) -> None:
    """Find the best mixture from the neighbours that 'score --save-neighbours FILE' wrote, and store it.

    No LM runs and nothing is searched. 'score' then takes the result by default.
    """
    from knnstore.report.tune import tune_json, tune_text
    from knnstore.score import SavedNeighbours, ScoreOptions
    from knnstore.score import tune as run

    saved = SavedNeighbours(file)
    report = run(saved, open_store(store), ScoreOptions(**options), reporter_for(quiet), keep=not dry_run)
    if as_json:
        show_json(tune_json(report))
    else:
        show(tune_text(report))
