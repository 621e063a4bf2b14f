"""``knnstore repair``."""

from typing import Any

import click

from knnstore.cli.options import print_result, reporter_for, selection_options, shared_options, store_option, store_root


@click.command()
@store_option
@click.option("--corpus", multiple=True, metavar="PATH…", help="The corpus that it was made of, if need be.")
@click.argument("more", nargs=-1, metavar="")
@selection_options
@click.option("--model", help="The LM that made it. Default: $KNNSTORE_MODEL, else the shipped wiki-lm.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Dask workers; 0: this process.")
@shared_options
@click.pass_context
def repair(context: click.Context, /, as_json: bool, quiet: bool, workers: int, **options: Any) -> None:
    """Make again what verify finds damaged.

    Keys and values come from the index's copy of the same rows, else from the LM and the corpus; the index from the
    keys. What can't be made again is named. Exit code 1 if there is any.
    """
    from knnstore.repair import RepairOptions
    from knnstore.repair import repair as run
    from knnstore.report.repair import repair_text
    from knnstore.scheduling import local_runner

    root, corpus = store_root(options.pop("store")), (*options.pop("corpus"), *options.pop("more"))
    with local_runner(workers) as runner:
        report = run(root, RepairOptions(corpus=corpus, **options), runner, reporter_for(quiet))
    print_result(as_json, report, repair_text(report))
    context.exit(1 if report.left else 0)
