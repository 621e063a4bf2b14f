"""The command line: parse, call one function, print, exit. Heavy imports wait until a command runs.

Each command has a module of its own; the list at the end gives the order of ``--help``.
"""

import os
from pathlib import Path

import click

from knnstore import __version__
from knnstore.cli.attribute import attribute
from knnstore.cli.compact import compact
from knnstore.cli.config import CONFIG_FILE, read_defaults
from knnstore.cli.demo import demo
from knnstore.cli.derive import merge, subset
from knnstore.cli.evaluate import evaluate
from knnstore.cli.exchange import export, import_command
from knnstore.cli.explore import explore
from knnstore.cli.generate import generate
from knnstore.cli.group import Group
from knnstore.cli.index import index
from knnstore.cli.info import info, stores
from knnstore.cli.ingest import ingest
from knnstore.cli.log import log, restore
from knnstore.cli.neighbours import neighbours
from knnstore.cli.remove import remove
from knnstore.cli.repair import repair
from knnstore.cli.score import score
from knnstore.cli.suffixes import suffixes
from knnstore.cli.tune import tune
from knnstore.cli.verify import verify


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="knnstore")
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar="KNNSTORE_CONFIG",
    help=f"File with defaults for the options. Default: {CONFIG_FILE} in this folder, if it exists.",
)
@click.pass_context
def main(context: click.Context, config: Path | None) -> None:
    """Give a language model an explicit memory on disk.

    \b
      knnstore ingest --corpus books/                  store a key and a value per token
      knnstore index                                   build an index of the keys
      knnstore score --model wiki-lm --store books     measure perplexity with and without it
      knnstore generate --prompt "Once upon a time"    write text with LM and store
    """
    # Set before the libraries load: OpenMP threads that wait then sleep instead of spinning. On a busy machine
    # spinning costs many times more than it saves.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Arrow's default pool reserves a gigabyte that it hardly uses but that counts towards RLIMIT_DATA.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if config is None and Path(CONFIG_FILE).is_file():
        config = Path(CONFIG_FILE)
    if config is not None:
        context.default_map = read_defaults(config, main)


_COMMANDS = (
    ingest,
    index,
    score,
    suffixes,
    tune,
    generate,
    neighbours,
    attribute,
    explore,
    info,
    stores,
    evaluate,
    verify,
    repair,
    remove,
    compact,
    log,
    restore,
    merge,
    subset,
    import_command,
    export,
    demo,
)
for _command in _COMMANDS:
    main.add_command(_command)
