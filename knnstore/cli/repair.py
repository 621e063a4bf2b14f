"""``knnstore repair``."""

from typing import Any

import click

from knnstore.cli.options import (
    print_result,
    reporter_for,
    selection_options,
    shared_options,
    store_option,
    workers_option,
)


@click.command()
@store_option
@click.option("--corpus", multiple=True, metavar="PATH…", help="The corpus the store was made from, if needed.")
@click.argument("more", nargs=-1, metavar="")
@selection_options
@click.option("--model", help="The LM that made the store. Default: $KNNSTORE_MODEL, else the shipped wiki-lm.")
@click.option("--device", default="auto", show_default=True, help="Device of the LM: cpu, cuda, cuda:1 …")
@workers_option
@shared_options
@click.pass_context
def repair(
    context: click.Context,
    /,
    as_json: bool,
    quiet: bool,
    corpus: tuple[str, ...],
    more: tuple[str, ...],
    **options: Any,
) -> None:
    """Rebuild what 'knnstore verify' finds damaged.

    Keys and values are taken from the index's copy of the same rows, else computed from the corpus by the LM; the index
    is rebuilt from the keys. Whatever can't be rebuilt is listed, with exit code 1.
    """
    from knnstore.cli.report.repair import repair_text
    from knnstore.operations.repair import repair as run

    report = run(corpus=(*corpus, *more), **options, reporter=reporter_for(quiet))
    print_result(as_json, report, repair_text(report))
    context.exit(1 if report.left else 0)
