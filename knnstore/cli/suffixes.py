"""``knnstore suffixes``."""

import click

from knnstore.cli.options import open_store, print_result, reporter_for, shared_options, store_option


@click.command()
@store_option
@shared_options
def suffixes(as_json: bool, quiet: bool, memory: int, store: str | None) -> None:
    """Build an exact-match memory of the store's tokens.

    It holds the tokens sorted by the text before them. The gate that 'knnstore tune' trains can then use the longest
    suffix of each context that occurs in the store, and the tokens that followed it. Takes about 6 bytes per token. Run
    it again after an interruption to resume.
    """
    from knnstore.cli.report.suffixes import suffixes_text
    from knnstore.scheduling import Job
    from knnstore.suffixes.build import build_suffixes

    opened = open_store(store)
    report = build_suffixes(opened, Job(reporter=reporter_for(quiet), memory=memory))
    print_result(as_json, report, suffixes_text(report, opened.root))
