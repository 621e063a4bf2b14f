"""``knnstore evaluate``."""

import click

from knnstore.errors import UsageError


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    options_metavar="",
    epilog="The harness comes with pip install 'knnstore[eval]'; its own options: knnstore evaluate -- --help",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="--model_args ARGS --tasks TASKS…")
def evaluate(arguments: tuple[str, ...]) -> None:
    """Run tasks of the LM Evaluation Harness on an LM with a store.

    \b
      knnstore evaluate --model_args pretrained=wiki-lm,store=books --tasks wikitext

    All arguments are the harness's; --model is knnstore. Its model's arguments are pretrained and store, then
    lambda_, temperature, k, nprobe and exact as for knnstore.attach; others go to its model hf.
    """
    try:
        import lm_eval  # noqa: F401 - whether it is there
    except ImportError as error:
        raise UsageError(f"{error.name} isn't installed: pip install 'knnstore[eval]'") from error
    from knnstore.evaluation import run_harness

    run_harness(arguments)
