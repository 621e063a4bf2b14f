"""Options and endings that several commands share."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from knnstore.cli.output import show, show_json
from knnstore.progress import Reporter, TerminalReporter
from knnstore.sizes import parse_size

if TYPE_CHECKING:
    from knnstore.datastore.store import Datastore
    from knnstore.scheduling import Runner

if TYPE_CHECKING:
    from click import ParamType
else:

    class ParamType(click.ParamType):
        """click's own, which is generic only since 8.4."""

        def __class_getitem__(cls, _: Any) -> type:
            return cls


Command = TypeVar("Command", bound=Callable[..., Any])


class Size(ParamType[int]):
    """Bytes, written as people do."""

    name = "size"

    def convert(self, value: Any, _param: Any, _context: Any) -> int:
        """``4GB`` to bytes."""
        return value if isinstance(value, int) else parse_size(value)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


class OutputFolder(ParamType[Path]):
    """A folder that results are written to; only this machine has those."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, _context: click.Context | None) -> Path:
        """The path; one that can't be written is refused before any work."""
        from knnstore.outputs import output_path

        return value if isinstance(value, Path) else output_path(value, param.opts[0] if param else "")


class OutputFile(OutputFolder):
    """A file that a result is written to."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, _context: click.Context | None) -> Path:
        """The path; one that can't be written is refused before any work."""
        from knnstore.outputs import output_file

        return value if isinstance(value, Path) else output_file(value, param.opts[0] if param else "")


def result_options(command: Command) -> Command:
    """The options of every command that has a result."""
    for option in (
        json_option,
        click.option("--quiet", is_flag=True, help="No progress, no sentences; only the result and errors."),
    ):
        command = option(command)
    return command


def shared_options(command: Command) -> Command:
    """The options that every stage has."""
    memory = click.option(
        "--memory", type=Size(), default="4GB", show_default=True, help="Most memory, of all processes together."
    )
    return memory(result_options(command))


def model_options(command: Command) -> Command:
    """Which LM, and how to run it."""
    for option in (
        click.option(
            "--allow-mismatch",
            is_flag=True,
            help="Take another LM, tokenizer or key layer than the store's.",
        ),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …"),
        click.option("--dtype", default="auto", show_default=True, help="float32, bfloat16 or float16 for the LM."),
        click.option("--model", help="Folder, name or hub id. Default: $KNNSTORE_MODEL, else the shipped wiki-lm."),
    ):
        command = option(command)
    return command


def reading_options(command: Command) -> Command:
    """How files of text are read."""
    for option in (
        click.option(
            "--errors",
            type=click.Choice(["strict", "replace", "skip"]),
            default="strict",
            show_default=True,
            help="Undecodable text: stop, put U+FFFD, or skip the document.",
        ),
        click.option(
            "--text-field",
            default="text",
            show_default=True,
            help="Field or column that holds the text: text, doc.text …",
        ),
    ):
        command = option(command)
    return selection_options(command)


def selection_options(command: Command) -> Command:
    """Which files of a folder are read."""
    for option in (
        click.option("--follow-links", is_flag=True, help="Follow symbolic links that lead out of the corpus."),
        click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave these files or folders out."),
        click.option(
            "--include",
            multiple=True,
            metavar="PATTERN",
            help="Take these files alone, whatever their type; patterns as in .gitignore: '*.py', 'src/'.",
        ),
    ):
        command = option(command)
    return command


def pair_options(command: Command) -> Command:
    """Where pairs of texts are, for an encoder-decoder model."""
    for option in (
        click.option(
            "--target-field", default="target", show_default=True, help="That of the target: a field a.b, or a column."
        ),
        click.option(
            "--source-field", default="source", show_default=True, help="Of pairs in files: where the source is."
        ),
        click.option("--target", multiple=True, metavar="FILE", help="What each line of --source becomes."),
        click.option("--source", multiple=True, metavar="FILE", help="Seq2seq: parallel files, a text a line."),
    ):
        command = option(command)
    return command


def lm_options(command: Command) -> Command:
    """The options of the stages that run the LM over files."""
    return model_options(reading_options(command))


def mixture_options(command: Command) -> Command:
    """How the store is searched and mixed with the LM, by commands that tune nothing."""
    for option in (
        click.option("--exact", is_flag=True, help="Search every key; needs no index."),
        click.option("--nprobe", type=int, help="Lists that a query searches. Default: the index's."),
        click.option("--temperature", type=float, help="Divides the distances. Default: as tuned, else derived."),
        click.option("--lambda", "lambda_", type=float, help="Weight of the store. Default: as tuned, else 0.25."),
        click.option("--k", type=int, help="Neighbours. Default: as tuned, else 1024."),
    ):
        command = option(command)
    return command


def complete_store(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the stores here that begin so, for the shell."""
    names = (path.parent.name.removesuffix(".knnstore") for path in Path().glob("*.knnstore/knnstore.json"))
    return sorted(name for name in names if name.startswith(incomplete))


def store_option(command: Command) -> Command:
    """``--store`` of a command that reads one; the shell completes the names of those here."""
    return click.option(
        "--store", shell_complete=complete_store, help="Name, path or URL of the store. Default: the only one here."
    )(store_cache_option(command))


def store_cache_option(command: Command) -> Command:
    """``--store-cache``, which this process and those that it starts find in the environment."""
    return click.option(
        "--store-cache",
        type=Size(),
        expose_value=False,
        callback=_set_store_cache,
        help="Most of this disk for what is read from object storage. Default: $KNNSTORE_STORE_CACHE, else 50GB.",
    )(command)


def _set_store_cache(_context: click.Context, _param: click.Parameter, value: int | None) -> None:
    if value is not None:
        os.environ["KNNSTORE_STORE_CACHE"] = str(value)


def stores_option(command: Command) -> Command:
    """``--store`` of a command that searches one store or several."""
    words = "Name, path or URL of the store; more than once: search them all together. Default: the only one here."
    option = click.option("--store", multiple=True, shell_complete=complete_store, help=words)
    return option(store_cache_option(command))


def cluster_options(command: Command) -> Command:
    """The options of the stages that can run on a Dask cluster."""
    for option in (
        click.option("--scheduler-file", metavar="FILE", help="The same, by the file that its scheduler wrote."),
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="Join this Dask cluster. Default: $DASK_SCHEDULER_ADDRESS or Dask's configuration, else this machine.",
        ),
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Cluster:
    """The Dask cluster that a command is to join."""

    address: str | None
    scheduler_file: str | None

    def runner(self, memory: int, reporter: Reporter) -> "AbstractContextManager[Runner]":
        """Its workers, of ``memory`` bytes each."""
        from knnstore.scheduling import cluster_runner

        return cluster_runner(self.address, self.scheduler_file, memory=memory, say=reporter.say)


def find_cluster(scheduler: str | None, scheduler_file: str | None, workers: int | None) -> Cluster | None:
    """The cluster that is asked for, by options or else by Dask's configuration; None for this machine."""
    from knnstore.scheduling import scheduler_address

    if (scheduler or scheduler_file) and workers is not None:
        raise click.UsageError("--workers starts workers on this machine; with --scheduler the cluster has its own.")
    if scheduler and scheduler_file:
        raise click.UsageError("--scheduler and --scheduler-file both name a cluster: give one of them.")
    if workers is not None:
        return None
    address = None if scheduler_file else scheduler_address(scheduler)
    return Cluster(address, scheduler_file) if address or scheduler_file else None


@dataclass(frozen=True, slots=True)
class Workers:
    """Where a command's tasks run: on a cluster, on ``count`` workers of this machine, or in this process."""

    count: int
    cluster: Cluster | None

    def runner(self, memory: int, reporter: Reporter) -> "AbstractContextManager[Runner]":
        """What runs them; ``memory`` in bytes."""
        from knnstore.scheduling import local_runner

        return self.cluster.runner(memory, reporter) if self.cluster else local_runner(self.count)


def workers_options(command: Command) -> Command:
    """``--workers``, ``--scheduler`` and ``--scheduler-file``, as the argument ``workers``, a ``Workers``."""

    @wraps(command)
    def chosen(
        *arguments: Any, workers: int | None, scheduler: str | None, scheduler_file: str | None, **rest: Any
    ) -> Any:
        cluster = find_cluster(scheduler, scheduler_file, workers)
        return command(*arguments, workers=Workers(workers or 0, cluster), **rest)

    option = click.option("--workers", type=click.IntRange(0), help="Dask worker processes. Default: 0, this process.")
    return cluster_options(option(chosen))  # type: ignore[return-value]


def store_root(store: str | None) -> Path:
    """The folder of the store of that name or path, or of the only one here."""
    from knnstore.datastore.store import only_store, store_path

    return store_path(store) if store else only_store(Path())


def open_store(store: str | None) -> "Datastore":
    """The store of that name or path, or the only one here."""
    from knnstore.datastore.store import Datastore

    return Datastore(store_root(store))


def reporter_for(quiet: bool) -> Reporter:
    """Sentences and bars on stderr, unless ``--quiet``."""
    return Reporter() if quiet else TerminalReporter()


def print_result(as_json: bool, report: Any, text: str) -> None:
    """The result on stdout: text for people, or one JSON object."""
    from knnstore.records import to_json

    if as_json:
        show_json(to_json(report))
    else:
        show(text)
