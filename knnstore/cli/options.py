"""Options, and ways to print a result, that several commands share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from knnstore.cli.output import show, show_json
from knnstore.progress import Reporter, TerminalReporter
from knnstore.sizes import parse_size

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from click import ParamType
else:

    class ParamType(click.ParamType):
        """click's class, which is generic only since 8.4."""

        def __class_getitem__(cls, _: Any) -> type:
            return cls


Command = TypeVar("Command", bound=Callable[..., Any])


class Size(ParamType[int]):
    """A number of bytes, written like ``4GB``."""

    name = "size"

    def convert(self, value: Any, _param: Any, _context: Any) -> int:
        """Return the number of bytes."""
        return value if isinstance(value, int) else parse_size(value)


def _parameter(param: click.Parameter | None) -> str:
    return param.opts[0].lstrip("-").replace("-", "_") if param else ""


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


class OutputFolder(ParamType[Path]):
    """A local folder that results are written to."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, _context: click.Context | None) -> Path:
        """Return the path, after checking that it can be written."""
        from knnstore.outputs import output_path

        return value if isinstance(value, Path) else output_path(value, _parameter(param))


class OutputFile(OutputFolder):
    """A local file that a result is written to."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, _context: click.Context | None) -> Path:
        """Return the path, after checking that it can be written."""
        from knnstore.outputs import output_file

        return value if isinstance(value, Path) else output_file(value, _parameter(param))


def result_options(command: Command) -> Command:
    """Add the options of every command that has a result."""
    for option in (
        json_option,
        click.option("--quiet", is_flag=True, help="Print only the result and errors."),
    ):
        command = option(command)
    return command


def shared_options(command: Command) -> Command:
    """Add the options that every stage has."""
    memory = click.option(
        "--memory", type=Size(), default="4GB", show_default=True, help="Memory limit across all processes."
    )
    return memory(result_options(command))


def model_options(command: Command) -> Command:
    """Add the options that choose the LM and how it runs."""
    for option in (
        click.option(
            "--allow-mismatch",
            is_flag=True,
            help="Accept an LM, tokenizer or key layer that differs from the store's.",
        ),
        click.option("--device", default="auto", show_default=True, help="Device of the LM: cpu, cuda, cuda:1 …"),
        click.option(
            "--dtype", default="auto", show_default=True, help="Precision of the LM: float32, bfloat16 or float16."
        ),
        click.option(
            "--model", help="Folder, name or hub id of the LM. Default: $KNNSTORE_MODEL, else the shipped wiki-lm."
        ),
    ):
        command = option(command)
    return command


def reading_options(command: Command) -> Command:
    """Add the options for reading text files."""
    for option in (
        click.option(
            "--errors",
            type=click.Choice(["strict", "replace", "skip"]),
            default="strict",
            show_default=True,
            help="Undecodable text: stop, insert U+FFFD, or skip the document.",
        ),
        click.option(
            "--text-field",
            default="text",
            show_default=True,
            help="Field or column with the text: text, doc.text …",
        ),
    ):
        command = option(command)
    return selection_options(command)


def selection_options(command: Command) -> Command:
    """Add the options that select files of a folder."""
    for option in (
        click.option("--follow-links", is_flag=True, help="Follow symbolic links that lead out of the corpus."),
        click.option("--exclude", multiple=True, metavar="PATTERN", help="Skip these files or folders."),
        click.option(
            "--include",
            multiple=True,
            metavar="PATTERN",
            help="Read only these files, whatever their type; patterns as in .gitignore: '*.py', 'src/'.",
        ),
    ):
        command = option(command)
    return command


def pair_options(command: Command) -> Command:
    """Add the options that locate pairs of texts, for an encoder-decoder model."""
    for option in (
        click.option(
            "--target-field",
            default="target",
            show_default=True,
            help="Field or column with the target: target, pair.target …",
        ),
        click.option(
            "--source-field",
            default="source",
            show_default=True,
            help="Field or column with the source: source, pair.source …",
        ),
        click.option(
            "--target",
            multiple=True,
            metavar="FILE",
            help="Seq2seq: parallel files with the target of each line of --source.",
        ),
        click.option(
            "--source", multiple=True, metavar="FILE", help="Seq2seq: parallel files with one source per line."
        ),
    ):
        command = option(command)
    return command


def lm_options(command: Command) -> Command:
    """Add the options of the stages that run the LM over files."""
    return model_options(reading_options(command))


def mixture_options(command: Command) -> Command:
    """Add the options for search and mixture to a command that doesn't tune."""
    for option in (
        click.option("--exact", is_flag=True, help="Search every key; needs no index."),
        click.option("--nprobe", type=int, help="Lists searched per query. Default: the index's."),
        click.option("--temperature", type=float, help="Divisor of the distances. Default: tuned, else estimated."),
        click.option("--lambda", "lambda_", type=float, help="Weight of the store. Default: tuned, else 0.25."),
        click.option("--k", type=int, help="Number of neighbours. Default: tuned, else 1024."),
    ):
        command = option(command)
    return command


def complete_store(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of stores in this folder that start with ``incomplete``, for the shell."""
    names = (path.parent.name.removesuffix(".knnstore") for path in Path().glob("*.knnstore/knnstore.json"))
    return sorted(name for name in names if name.startswith(incomplete))


def store_option(command: Command) -> Command:
    """Add ``--store`` to a command that reads one store."""
    return click.option(
        "--store",
        shell_complete=complete_store,
        help="Name, path or URL of the store. Default: the only one in this folder.",
    )(store_cache_option(command))


def store_cache_option(command: Command) -> Command:
    """Add ``--store-cache``, passed to this process and its children through the environment."""
    return click.option(
        "--store-cache",
        type=Size(),
        expose_value=False,
        callback=_set_store_cache,
        help="Local cache size for object storage. Default: $KNNSTORE_STORE_CACHE, else 50GB.",
    )(command)


def _set_store_cache(_context: click.Context, _param: click.Parameter, value: int | None) -> None:
    if value is not None:
        os.environ["KNNSTORE_STORE_CACHE"] = str(value)


def stores_option(command: Command) -> Command:
    """Add ``--store`` to a command that searches one store or several."""
    words = (
        "Name, path or URL of the store; repeat it to search several together. Default: the only one in this folder."
    )
    option = click.option("--store", multiple=True, shell_complete=complete_store, help=words)
    return option(store_cache_option(command))


def cluster_options(command: Command) -> Command:
    """Add the options of the stages that can run on a Dask cluster."""
    for option in (
        click.option(
            "--scheduler-file", metavar="FILE", help="Dask cluster to join, by the file that its scheduler wrote."
        ),
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="Dask cluster to join. Default: $DASK_SCHEDULER_ADDRESS or Dask's configuration, else this machine.",
        ),
    ):
        command = option(command)
    return command


workers_option = click.option(
    "--workers", type=click.IntRange(0), help="Number of Dask worker processes. Default: 0, run in this process."
)


def workers_options(command: Command) -> Command:
    """Add ``--workers`` and the options of a Dask cluster."""
    return cluster_options(workers_option(command))


def reporter_for(quiet: bool) -> Reporter:
    """Return a reporter that prints messages and progress bars on stderr, unless ``quiet``."""
    return Reporter() if quiet else TerminalReporter()


def print_result(as_json: bool, report: Any, text: str) -> None:
    """Print the result on stdout: text for people, or one JSON object."""
    from knnstore.records import to_json

    if as_json:
        show_json(to_json(report))
    else:
        show(text)
