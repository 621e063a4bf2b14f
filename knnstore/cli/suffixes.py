"""``knnstore suffixes``."""

import click

from knnstore.cli.options import print_result, reporter_for, shared_options, store_option


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
    from knnstore.operations.shared import find_store
    from knnstore.operations.suffixes import suffixes as run

    report = run(store, memory=memory, reporter=reporter_for(quiet))
    print_result(as_json, report, suffixes_text(report, find_store(store)))
