"""``knnstore verify``."""

import click

from knnstore.cli.options import print_result, reporter_for, store_option


@click.command()
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--quiet", is_flag=True, help="Print only the result and errors.")
@click.pass_context
def verify(context: click.Context, store: str | None, as_json: bool, quiet: bool) -> None:
    """Read every byte of a store and compare it with its checksums.

    Lists each damaged file with its rows and whether it can be rebuilt. Exit code 1 if anything is damaged.
    """
    from knnstore.cli.report.verify import verify_text
    from knnstore.operations.verify import verify as run

    report = run(store, reporter=reporter_for(quiet))
    print_result(as_json, report, verify_text(report))
    context.exit(0 if report.intact else 1)
