"""``knnstore suffixes``."""

import click

from knnstore.cli.options import open_store, print_result, reporter_for, shared_options, store_option


@click.command()
@store_option
@shared_options
def suffixes(as_json: bool, quiet: bool, memory: int, store: str | None) -> None:
    """Sort the store's tokens by what stands before them: an exact-match memory.

    A gate that 'knnstore tune' trains then knows the longest suffix of each context that occurs in the store, and what
    followed it. About 6 bytes a token. The same command after an interruption goes on where it stopped.
    """
    from knnstore.report.suffixes import suffixes_text
    from knnstore.suffixes.build import build_suffixes

    opened = open_store(store)
    report = build_suffixes(opened, memory, reporter_for(quiet))
    print_result(as_json, report, suffixes_text(report, opened.root))
