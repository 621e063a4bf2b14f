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

# A token is styled from these shares of its probability that come from the store.
_STYLES = ((0.9, {"fg": "green", "bold": True}), (0.5, {"fg": "green"}))


@click.command()
@click.option("--prompt", default="", help="Text to continue. Default: empty, the start of a document.")
@store_option
@click.option(
    "--explain", is_flag=True, help="Show what the store contributed to each token, and which passage it came from."
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Maximum number of new tokens."
)
@click.option(
    "--sampling-temperature",
    type=float,
    help="0: always the most probable token; 1: sample from the mixture. Default: 0.",
)
@click.option("--top-p", type=float, help="Nucleus probability mass to sample from. Default: 1.")
@click.option("--top-k", type=int, help="Number of most probable tokens to sample from; 0: all. Default: 0.")
@click.option("--seed", type=int, help="Seed that makes sampling reproducible.")
@click.option(
    "--generation-config",
    is_flag=True,
    help="Apply the sampling, penalties and bans of the model's generation_config.json; options above take precedence.",
)
@mixture_options
@model_options
@result_options
def generate(as_json: bool, quiet: bool, store: str | None, prompt: str, explain: bool, **options: Any) -> None:
    """Generate text with the LM and the store together.

    The text is printed token by token. With an encoder-decoder model, the prompt is the source, for example a text to
    translate.

    With --explain, a terminal shows tokens in green if at least half of their probability comes from the store, and in
    bold green from nine tenths.
    """
    from dataclasses import replace

    from knnstore.api import Sampling, open
    from knnstore.cli.report.generation import asked_line, explanation, generation_json
    from knnstore.cli.report.words import printable, setting_words

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
    gate = "; a gate weighs each token" if generation.gated else ""
    reporter.say(f"mixture   {setting_words(setting)}{gate}; {generation.source}")
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
