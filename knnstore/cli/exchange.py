"""``knnstore import`` and ``knnstore export``."""

from pathlib import Path
from typing import Any

import click

from knnstore.cli.options import OutputFolder, complete_store, print_result, reporter_for, store_option

_FILE = click.Path(path_type=Path)


@click.command("import")
@click.option(
    "--keys", type=_FILE, required=True, metavar="FILE", help="File of keys: raw float16 or float32, row by row."
)
@click.option(
    "--vals",
    type=_FILE,
    required=True,
    metavar="FILE",
    help="File of values: raw int16, int32 or int64 token ids.",
)
@click.option("--dim", type=int, help="Dimension of a key. Default: from the file names or config.json.")
@click.option("--rows", type=int, help="Number of rows written, if the files are longer. Default: all.")
@click.option(
    "--key-type", type=click.Choice(["float16", "float32"]), help="Type of the keys. Default: by the files' sizes."
)
@click.option(
    "--value-type",
    type=click.Choice(["int16", "int32", "int64"]),
    help="Type of the values. Default: by the files' sizes.",
)
@click.option(
    "--store", shell_complete=complete_store, help="Name, path or URL of the store. Default: named after the keys."
)
@click.option("--model", help="The LM that made the keys. Without it, the store can be searched but not used to score.")
@click.option(
    "--key", type=click.Choice(["ffn-input", "hidden", "attention-input"]), help="Layer of the keys. Default: detected."
)
@click.option(
    "--check/--no-check", default=True, help="Compare the keys with those that --model computes.", show_default=True
)
@click.option("--vocabulary", type=int, help="Vocabulary size, without --model. Default: largest token id + 1.")
@click.option("--context", type=click.IntRange(1), help="Window length for scoring, in tokens. Default: the LM's own.")
@click.option("--stride", type=click.IntRange(1), help="Tokens scored per window. Default: half the context.")
@click.option(
    "--key-dtype",
    type=click.Choice(["float16", "int8"]),
    default="float16",
    show_default=True,
    help="Type of the stored keys; float16 stores float16 keys unchanged.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--overwrite", is_flag=True, help="Discard the store's contents and start over.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--quiet", is_flag=True, help="Print only the result and errors.")
def import_command(as_json: bool, quiet: bool, **options: Any) -> None:
    """Import the memmaps of knnlm, knn-transformers or knn-box.

    \b
      knnstore import --keys dstore_keys.npy --vals dstore_vals.npy --dim 1024 --model gpt2

    Run it again after an interruption to resume.
    """
    from knnstore.cli.report.exchange import import_text
    from knnstore.operations.import_ import import_ as run

    report = run(**options, reporter=reporter_for(quiet))
    print_result(as_json, report, import_text(report))


@click.command()
@store_option
@click.option(
    "--to",
    type=click.Choice(["memmap", "parquet", "faiss"]),
    default="memmap",
    show_default=True,
    help="memmap: raw keys and values; parquet: a table of both; faiss: the index.",
)
@click.option(
    "--out", type=OutputFolder(), default=".", show_default=True, metavar="FOLDER", help="Folder to write to."
)
@click.option(
    "--key-type",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Type of the keys.",
)
@click.option(
    "--value-type",
    type=click.Choice(["int16", "int32", "int64"]),
    default="int32",
    show_default=True,
    help="Type of the values.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--quiet", is_flag=True, help="Print only the result and errors.")
def export(as_json: bool, quiet: bool, store: str | None, **options: Any) -> None:
    """Export a store as memmaps or Parquet, or its index for faiss."""
    from knnstore.cli.report.exchange import export_text
    from knnstore.operations.export import export as run

    report = run(store, **options, reporter=reporter_for(quiet))
    print_result(as_json, report, export_text(report))
