"""``knnstore generate``."""

from typing import Any

import click

from knnstore.cli.options import (
    mixture_options,
    model_options,
    reporter_for,
    result_options,
    store_option,
)
from knnstore.cli.output import print_styled, show, show_json

# From which share of a token's probability on it is shown as the store's, and as the store's alone.
_STYLES = ((0.9, {"fg": "green", "bold": True}), (0.5, {"fg": "green"}))


@click.command()
@click.option("--prompt", default="", help="The text to go on from. Default: none, the beginning of a document.")
@store_option
@click.option("--explain", is_flag=True, help="Say of each token what it owes to the store, and to which passage.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="When to stop at last.")
@click.option(
    "--sampling-temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="0: the most probable token each time; 1: drawn from the mixture.",
)
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Draw from the tokens that hold so much.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Draw from so many tokens; 0: all.")
@click.option("--seed", type=int, help="Makes the draw repeatable.")
@mixture_options
@model_options
@result_options
def generate(as_json: bool, quiet: bool, store: str | None, prompt: str, explain: bool, **options: Any) -> None:
    """Write a text with the LM and the store together, as it comes.

    An encoder-decoder model writes what the prompt becomes: its translation, say.

    With --explain, on a terminal, green are the tokens that owe half of their probability to the store, bold green
    those that owe it nine tenths.
    """
    from knnstore.api import Sampling, open
    from knnstore.report.generation import explanation, generation_json
    from knnstore.report.words import printable

    lm = {name: options.pop(name) for name in ("model", "device", "dtype", "allow_mismatch")}
    opened = open(store, **lm)
    most = options.pop("max_new_tokens")
    temperature = options.pop("sampling_temperature")
    sampling = Sampling(temperature, options.pop("top_p"), options.pop("top_k"), options.pop("seed"))
    joined = opened.joined(**options)
    generation = opened.generate(prompt, most, sampling=sampling, joined=joined)
    setting, reporter = generation.setting, reporter_for(quiet or as_json)
    reporter.say(
        f"mixture   k {setting.k}, λ {setting.lambda_:g}, temperature {setting.temperature:g}; {generation.source}"
    )
    reporter.say(f"search    {joined.search.words(setting.k)}")
    if as_json:
        list(generation)
        show_json(generation_json(generation))
        return
    if opened.task == "causal":
        print_styled(printable(prompt), newline=False)
    for token in generation:
        style = next((style for share, style in _STYLES if explain and token.store_share >= share), {})
        print_styled(click.style(printable(token.text), **style) if style else printable(token.text), newline=False)
    print_styled("")
    if explain:
        show(f"\n{explanation(generation)}")
