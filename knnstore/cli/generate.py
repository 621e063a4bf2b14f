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
    help="0: the most probable token each time; 1: drawn from the mixture. Default: 0.",
)
@click.option("--top-p", type=float, help="Draw from the most probable tokens that hold this share. Default: 1.")
@click.option("--top-k", type=int, help="Draw from this many tokens; 0: all. Default: 0.")
@click.option("--seed", type=int, help="Makes the draw repeatable.")
@click.option(
    "--generation-config",
    is_flag=True,
    help="Apply the sampling, penalties and bans of the model's generation_config.json; the options above prevail.",
)
@mixture_options
@model_options
@result_options
def generate(as_json: bool, quiet: bool, store: str | None, prompt: str, explain: bool, **options: Any) -> None:
    """Write a text with the LM and the store together, as it comes.

    An encoder-decoder model writes what the prompt becomes: its translation, say.

    With --explain, on a terminal, green are the tokens that owe half of their probability to the store, bold green
    those that owe it nine tenths.
    """
    from dataclasses import replace

    from knnstore.api import Sampling, open
    from knnstore.report.generation import asked_line, explanation, generation_json
    from knnstore.report.words import printable

    lm = {name: options.pop(name) for name in ("model", "device", "dtype", "allow_mismatch")}
    opened = open(store, **lm)
    most = options.pop("max_new_tokens")
    given = {name: options.pop(name) for name in ("top_p", "top_k", "seed")}
    given |= {"temperature": options.pop("sampling_temperature")}
    given = {name: value for name, value in given.items() if value is not None}
    as_asked = options.pop("generation_config")
    sampling = Sampling(**given)
    joined = opened.joined(**options)
    if as_asked:
        sampling = replace(Sampling.asked_by(opened.lm.loaded.model), **given)
    generation = opened.generate(prompt, most, sampling=sampling, joined=joined, generation_config=as_asked)
    setting, reporter = generation.setting, reporter_for(quiet or as_json)
    reporter.say(
        f"mixture   k {setting.k}, λ {setting.lambda_:g}, temperature {setting.temperature:g}; {generation.source}"
    )
    reporter.say(f"search    {joined.search.words(setting.k)}")
    if line := asked_line(generation):
        reporter.say(f"model     {line}")
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
