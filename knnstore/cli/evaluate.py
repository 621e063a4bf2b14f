"""``knnstore evaluate``."""

import sys

import click

from knnstore.errors import UsageError


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    options_metavar="",
    epilog="Install the harness with pip install 'knnstore[eval]'. Its own options: knnstore evaluate -- --help",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="--model_args ARGS --tasks TASKS…")
def evaluate(arguments: tuple[str, ...]) -> None:
    """Run tasks of the LM Evaluation Harness on an LM with a store.

    \b
      knnstore evaluate --model_args pretrained=wiki-lm,store=books --tasks wikitext

    All arguments are passed to the harness, with --model knnstore. Model arguments are pretrained and store, then
    lambda_, temperature, k, nprobe and exact as for knnstore.attach; all others go to the harness's model hf.
    """
    try:
        import lm_eval  # noqa: F401 - checks that it is installed
    except ImportError as error:
        raise UsageError(f"{error.name} isn't installed: pip install 'knnstore[eval]'") from error
    from lm_eval.__main__ import cli_evaluate

    from knnstore.evaluation import NAME

    given = list(arguments)
    if not any(argument.split("=")[0] in ("--model", "-M") for argument in given):
        given = ["--model", NAME, *given]
    sys.argv[:] = ["lm_eval", "run", *given]  # where the harness looks
    cli_evaluate()
