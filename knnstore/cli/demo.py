"""``knnstore demo``."""

from pathlib import Path

import click

from knnstore.cli.options import OutputFolder, reporter_for
from knnstore.cli.output import show


@click.command()
@click.option("--folder", type=OutputFolder(), default="knnstore-demo", show_default=True, help="Folder to work in.")
@click.option("--quiet", is_flag=True, help="Print only the result and errors.")
def demo(folder: Path, quiet: bool) -> None:
    """Adapt the shipped LM to Python's documentation.

    Runs all three stages in a few minutes.
    """
    from knnstore.cli.report.demo import demo_text
    from knnstore.demo import demo as run

    report = run(folder, reporter_for(quiet))
    show(demo_text(report.ingest, report.index, report.score))
