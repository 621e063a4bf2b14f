"""The page: Gradio's components and their event handlers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from knnstore.attachment.defaults import AttachedMixture
from knnstore.errors import KnnstoreError
from knnstore.explore import render
from knnstore.explore.explorer import MOST_TOKENS, Explorer
from knnstore.lm.asked import asked_otherwise, asked_penalties, asked_sampling, words
from knnstore.mixing.mixture import Mixture
from knnstore.mixing.setting import Setting
from knnstore.passages import Passage

_FOLDER = Path(__file__).parent
STYLE = (_FOLDER / "page.css").read_text(encoding="utf-8")
_TOKENS = (_FOLDER / "tokens.js").read_text(encoding="utf-8")
_CHOICES, _SOURCES = 8, 12
_HINT = '<p class="note">Click a token to see the predictions of LM and store, and the passages they come from.</p>'


def make_page(explorer: Explorer) -> gr.Blocks:
    """Return the page on a store. The only state shared by its visitors is the recent texts of ``explorer``."""
    store, manifest = explorer.store, explorer.store.datastore.manifest
    with gr.Blocks(title=f"{store.name} · knnstore explore", analytics_enabled=False) as page:
        gr.HTML(
            render.heading(store.name, len(store), manifest.model.name, manifest.key.layer),
            elem_id="head",
        )
        sliders = _sliders(explorer)
        with gr.Tab("Read"):
            _reading(explorer, sliders)
        with gr.Tab("Write", elem_id="writing"):
            _writing(explorer, sliders)
    return page


def _sliders(explorer: Explorer) -> list[gr.Slider]:
    """Return the sliders of λ, temperature and k, in this order, for both tabs."""
    setting = explorer.start.setting
    least, most, middle, step = _temperatures(setting.temperature)
    with gr.Row():
        return [
            gr.Slider(0, 0.99, round(setting.lambda_, 2), step=0.01, label="λ, the store's weight", elem_id="lambda"),
            gr.Slider(least, most, middle, step=step, label="temperature of the distances", elem_id="temperature"),
            gr.Slider(1, explorer.k, setting.k, step=1, label="k, neighbours", elem_id="k"),
        ]


def _reading(explorer: Explorer, sliders: list[gr.Slider]) -> None:
    box = gr.Textbox(
        explorer.example,
        label="Text",
        lines=3,
        max_lines=10,
        elem_id="source",
        placeholder=f"Paste a text; at most {MOST_TOKENS:,} tokens are read",
    )
    button = gr.Button("Read", variant="primary", elem_id="read")
    numbers = gr.HTML(elem_id="numbers")
    with gr.Row():
        with gr.Column(scale=3):
            text = gr.HTML(elem_id="tokens", js_on_load=_TOKENS)
            gr.HTML(render.legend())
        with gr.Column(scale=2):
            detail = gr.HTML(_HINT, elem_id="detail")
    sources = gr.HTML(elem_id="sources")
    read, chosen = gr.State(explorer.example), gr.State(None)

    def refresh(words: str, number: int | None, *values: float) -> list[Any]:
        mixed_by = _mixed_by(explorer, sliders, values)
        now = mixed_by.mixture
        try:
            analysis = explorer.analysed(words)
        except KnnstoreError as error:
            raise gr.Error(str(error), print_exception=False) from error
        scored = analysis.scored(now)
        note = f"The mixture is {mixed_by.source}."
        shown = [render.numbers(scored, note), render.tokens(analysis, scored, number)]
        if number is None:
            return [*shown, _HINT, ""]
        choices = analysis.choices(number, now, _CHOICES)
        decode = explorer.store.lm.loaded.decode
        weight = "weighed by a gate" if now.gate else f"λ {now.setting.lambda_:g}"
        details = render.token_detail(analysis, scored, number, weight, [(decode([c.token]), c) for c in choices])
        nearest = explorer.sources(analysis, number, now, _SOURCES)
        return [*shown, details, render.neighbours(nearest, decode([int(analysis.ids[number])]), now.k)]

    def begin(words: str, *values: float) -> list[Any]:
        return [words, None, *refresh(words, None, *values)]

    def pick(words: str, weight: float, heat: float, count: float, event: gr.EventData) -> list[Any]:
        number = int(event.index)
        return [number, *refresh(words, number, weight, heat, count)]

    shown = [numbers, text, detail, sources]
    quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    button.click(begin, [box, *sliders], [read, chosen, *shown], api_visibility="private")
    text.click(pick, [read, *sliders], [chosen, *shown], **quick)
    # one listener for all sliders, so that an earlier answer never arrives after a later one
    moved = [slider.change for slider in sliders]
    gr.on(moved, refresh, [read, chosen, *sliders], shown, trigger_mode="always_last", **quick)
    if explorer.example:
        numbers.value, text.value = refresh(explorer.example, None, *(slider.value for slider in sliders))[:2]


def _writing(explorer: Explorer, sliders: list[gr.Slider]) -> None:
    box = gr.Textbox(label="Prompt", lines=2, elem_id="prompt", placeholder="Text to continue")
    with gr.Row():
        most = gr.Slider(1, 256, 64, step=1, label="tokens")
        heat = gr.Slider(0, 1.5, 0.7, step=0.05, label="sampling temperature; 0: the most probable token")
    with gr.Row():
        button = gr.Button("Generate", variant="primary", elem_id="write")
        stop = gr.Button("Stop", elem_id="stop")
    model = explorer.store.lm.loaded.model
    if asked := asked_sampling(model) | asked_penalties(model) | asked_otherwise(model):
        gr.HTML(render.note(f"The model's generation_config.json requests {words(asked)}: not applied here."))
    text = gr.HTML(elem_id="written")
    owed = gr.HTML(elem_id="owed")

    def write(prompt: str, most: float, heat: float, *values: float) -> Iterator[list[str]]:
        try:
            generation = explorer.write(prompt, int(most), float(heat), _mixed_by(explorer, sliders, values))
            cited: list[Passage | None] = []
            for token in generation:
                cited.append(generation.cited(token))
                yield [render.written(prompt, generation.tokens, cited), ""]
        except KnnstoreError as error:
            raise gr.Error(str(error), print_exception=False) from error
        yield [render.written(prompt, generation.tokens, cited), render.owed(generation.attribution)]

    writing = button.click(
        write, [box, most, heat, *sliders], [text, owed], show_progress="hidden", api_visibility="private"
    )
    stop.click(None, cancels=[writing], api_visibility="private")


def _mixed_by(explorer: Explorer, sliders: list[gr.Slider], values: Sequence[float]) -> AttachedMixture:
    """Return the mixture that the page begins with while no slider has been moved, else the sliders' constants."""
    if list(values) == [slider.value for slider in sliders]:
        return explorer.start
    weight, temperature, k = values
    return AttachedMixture(Mixture(Setting(int(k), float(weight), float(temperature))), "as the sliders say")


def _temperatures(middle: float) -> tuple[float, float, float, float]:
    """Return minimum, maximum, initial value and step of the temperature slider around the initial temperature."""
    step = float(f"{middle / 16:.1g}")
    return step, round(middle * 6 / step) * step, max(step, round(middle / step) * step), step
