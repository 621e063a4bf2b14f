"""The command line: parse, call one function, print, exit. Heavy imports wait until a command runs."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from knnstore import __version__
from knnstore.errors import KnnstoreError
from knnstore.progress import Reporter, TerminalReporter
from knnstore.sizes import parse_size

Command = TypeVar("Command", bound=Callable[..., Any])
_INTERRUPTED = 130


class _Group(click.Group):
    """Turns errors of ours into one sentence and an exit code, and Ctrl-C into advice."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KnnstoreError as error:
            click.echo(f"Error: {error}", err=True)
            context.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("\ninterrupted: the same command goes on where this one stopped", err=True)
            context.exit(_INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            context.exit(1)


class _Size(click.ParamType[int]):
    """Bytes, written as people do."""

    name = "size"

    def convert(self, value: Any, _param: Any, _context: Any) -> int:
        return value if isinstance(value, int) else parse_size(value)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="knnstore")
def main() -> None:
    """Give a language model an explicit memory, on disk.

    \b
      knnstore ingest --corpus books/                  keys and values of every token
      knnstore index                                   an index over them
      knnstore score --model wiki-lm --store books     perplexity with and without
    """
    # Before the libraries load: threads that wait for each other sleep rather than spin. On a machine that does
    # other work as well, spinning costs many times what the waiting does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _shared(command: Command) -> Command:
    """The options that every stage has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
        click.option("--quiet", is_flag=True, help="No progress, no sentences; only the result and errors."),
        click.option(
            "--memory", type=_Size(), default="4GB", show_default=True, help="Most memory, of all processes together."
        ),
    ):
        command = option(command)
    return command


def _lm_options(command: Command) -> Command:
    """The options of the stages that run the LM."""
    for option in (
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …"),
        click.option("--dtype", default="auto", show_default=True, help="float32, bfloat16 or float16 for the LM."),
        click.option(
            "--errors",
            type=click.Choice(["strict", "replace", "skip"]),
            default="strict",
            show_default=True,
            help="Undecodable text: stop, put U+FFFD, or skip the document.",
        ),
        click.option("--text-field", default="text", show_default=True, help="Field or column that holds the text."),
        click.option("--model", help="Folder, name or hub id. Default: $KNNSTORE_MODEL, else the shipped wiki-lm."),
    ):
        command = option(command)
    return command


@main.command()
@click.option("--corpus", multiple=True, required=True, metavar="PATH…", help="Folders, files or globs of text.")
@click.argument("more", nargs=-1, metavar="")
@click.option("--store", help="Name, path or file:// URL of the store. Default: named after the corpus.")
@click.option("--context", type=click.IntRange(1), help="Window, in tokens. Default: the LM's own, at most 1024.")
@click.option("--stride", type=click.IntRange(1), help="Tokens scored a window. Default: half of the context.")
@click.option(
    "--key",
    type=click.Choice(["ffn-input", "hidden", "attention-input"]),
    default="ffn-input",
    show_default=True,
    help="Which activations are the keys.",
)
@click.option("--key-dtype", type=click.Choice(["int8", "float16"]), default="int8", show_default=True)
@click.option(
    "--holdout", type=float, default=0.01, show_default=True, help="Share of documents kept out to measure on."
)
@click.option("--chunk-rows", type=click.IntRange(1), help="Keys a chunk and a task. Default: about 32 MiB.")
@click.option("--workers", type=click.IntRange(0), help="Dask worker processes; 0 works in this one. Default: planned.")
@click.option("--overwrite", is_flag=True, help="Discard what the store holds and start anew.")
@_lm_options
@_shared
def ingest(as_json: bool, quiet: bool, corpus: tuple[str, ...], more: tuple[str, ...], **options: Any) -> None:
    """Run a corpus through an LM and store a key and a value for every token.

    .txt, .md, .jsonl, .jsonl.gz, .jsonl.zst and .parquet, each file or record a document. The same command after an
    interruption goes on where it stopped.
    """
    from knnstore.ingest import IngestOptions, choose_workers
    from knnstore.ingest import ingest as run
    from knnstore.report import ingest_text
    from knnstore.scheduling import available_cores, local_runner

    workers = options.pop("workers")
    settings = IngestOptions(corpus=(*corpus, *more), **options, workers=workers or 0)
    if workers is None:
        settings = choose_workers(settings, available_cores())
    with local_runner(settings.workers) as runner:
        report = run(settings, runner, _reporter(quiet))
    _print(as_json, report, ingest_text(report))


@main.command()
@click.option("--store", help="Name or path of the store. Default: the only one here.")
@click.option("--nlist", type=int, help="Inverted lists. Default: planned from the number of keys.")
@click.option("--pq-bytes", type=int, help="Bytes of a key's code, a divisor of its width. Default: planned.")
@click.option("--train-sample", type=int, help="Keys to train on. Default: 40 a list.")
@click.option(
    "--nprobe", type=int, help="Lists that a query searches by default. Default: 32, more where they are short."
)
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Dask workers; 0: this process.")
@click.option("--overwrite", is_flag=True, help="Build it anew even if it is there.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and what it takes; do nothing.")
@_shared
def index(as_json: bool, quiet: bool, store: str | None, dry_run: bool, **options: Any) -> None:
    """Build the IVF-PQ index of a store.

    The same command after an interruption goes on where it stopped.
    """
    from knnstore.build import IndexOptions, build_index, plan_index
    from knnstore.report import index_text
    from knnstore.scheduling import local_runner

    opened = _open(store)
    settings = IndexOptions(**options)
    if dry_run:
        _, resources, sentences = plan_index(opened, settings)
        _print(as_json, resources, "\n".join(sentences))
        return
    with local_runner(settings.workers) as runner:
        report = build_index(opened, settings, runner, _reporter(quiet))
    _print(as_json, report, index_text(report, opened.root))


@main.command()
@click.option("--store", help="Name or path of the store. Default: the only one here.")
@click.option("--text", multiple=True, metavar="PATH…", help="Text to score. Default: the documents held out.")
@click.argument("more", nargs=-1, metavar="")
@click.option("--k", type=int, help="Neighbours. Default: tuned, up to 1024.")
@click.option("--lambda", "lambda_", type=float, help="Weight of the store in the mixture. Default: tuned.")
@click.option("--temperature", type=float, help="Divides the distances. Default: tuned.")
@click.option("--nprobe", type=int, help="Lists that a query searches. Default: the index's.")
@click.option("--exact", is_flag=True, help="Search every key; needs no index.")
@click.option("--quantised", is_flag=True, help="Take distances from the PQ codes, not from the keys.")
@click.option("--per-token", metavar="FILE", help="Write a Parquet file with a row for every token.")
@_lm_options
@_shared
def score(as_json: bool, quiet: bool, text: tuple[str, ...], more: tuple[str, ...], **options: Any) -> None:
    """Perplexity of a text by the LM alone, and joined to the store.

    What is not given of k, λ and temperature is tuned on half of the documents and reported on the others.
    """
    from knnstore.report import score_text
    from knnstore.score import ScoreOptions
    from knnstore.score import score as run

    if more and not text:
        raise click.UsageError(f"Got unexpected arguments: {' '.join(more)}")
    store = _open(options.pop("store"))
    report = run(ScoreOptions(text=(*text, *more), **options), store, _reporter(quiet))
    click.echo(json.dumps(report.to_json(), ensure_ascii=False) if as_json else score_text(report))


@main.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default="knnstore-demo", show_default=True, help="Where to work."
)
@click.option("--quiet", is_flag=True, help="No progress, no sentences; only the result and errors.")
def demo(folder: Path, quiet: bool) -> None:
    """Adapt the shipped Wikipedia LM to Python's documentation: all three stages, in a few minutes."""
    from knnstore.demo import demo as run
    from knnstore.report import demo_text

    report = run(folder, _reporter(quiet))
    click.echo(demo_text(report.ingest, report.index, report.score))


def _open(store: str | None) -> Any:
    from knnstore.datastore.store import Datastore, only_store, store_path

    return Datastore(store_path(store) if store else only_store(Path()))


def _reporter(quiet: bool) -> Reporter:
    return Reporter() if quiet else TerminalReporter()


def _print(as_json: bool, report: Any, text: str) -> None:
    from knnstore.records import to_json

    click.echo(json.dumps(to_json(report), ensure_ascii=False, default=str) if as_json else text)
