"""The page: Gradio's components, and what happens when one is touched."""

from pathlib import Path
from typing import Any

import gradio as gr

from knnstore.errors import KnnstoreError
from knnstore.explore import render
from knnstore.explore.explorer import MOST_TOKENS, Explorer
from knnstore.score.result import Setting

_FOLDER = Path(__file__).parent
STYLE = (_FOLDER / "page.css").read_text(encoding="utf-8")
_TOKENS = (_FOLDER / "tokens.js").read_text(encoding="utf-8")
_CHOICES, _SOURCES = 8, 12
_HINT = '<p class="note">Click a token to see who would have said what, and where the store learned it.</p>'


def make_page(explorer: Explorer) -> gr.Blocks:
    """The page on a store. It holds no text between its visitors but what ``explorer`` has read last."""
    store, manifest = explorer.store, explorer.store.datastore.manifest
    setting, source = explorer.start
    with gr.Blocks(title=f"{store.name} · knnstore explore", analytics_enabled=False) as page:
        gr.HTML(
            render.heading(store.name, len(store), manifest.model.name, manifest.key.layer),
            elem_id="head",
        )
        with gr.Tab("Read"):
            _reading(explorer, setting, source)
    return page


def _reading(explorer: Explorer, setting: Setting, source: str) -> None:
    with gr.Row():
        with gr.Column(scale=3):
            box = gr.Textbox(
                explorer.example,
                label="Text",
                lines=4,
                max_lines=12,
                elem_id="source",
                placeholder=f"Paste a text; up to {MOST_TOKENS:,} tokens of it are read",
            )
            button = gr.Button("Read it", variant="primary", elem_id="read")
        with gr.Column(scale=2):
            weight = gr.Slider(
                0, 0.99, round(setting.lambda_, 2), step=0.01, label="λ, the store's weight", elem_id="lambda"
            )
            least, most, middle, step = _temperatures(setting.temperature)
            heat = gr.Slider(
                least, most, middle, step=step, label="temperature of the distances", elem_id="temperature"
            )
            count = gr.Slider(1, explorer.k, setting.k, step=1, label="k, neighbours", elem_id="k")
    numbers = gr.HTML(elem_id="numbers")
    with gr.Row():
        with gr.Column(scale=3):
            text = gr.HTML(elem_id="tokens", js_on_load=_TOKENS)
            gr.HTML(render.legend())
        with gr.Column(scale=2):
            detail = gr.HTML(_HINT, elem_id="detail")
    sources = gr.HTML(elem_id="sources")
    read, chosen = gr.State(explorer.example), gr.State(None)
    sliders = [weight, heat, count]

    def refresh(words: str, number: int | None, *values: float) -> list[Any]:
        now = Setting(int(values[2]), float(values[0]), float(values[1]))
        try:
            analysis = explorer.analysed(words)
        except KnnstoreError as error:
            raise gr.Error(str(error), print_exception=False) from error
        scored = analysis.scored(now)
        note = (
            f"Sliders began where they were {source}."
            if source.startswith("tuned")
            else f"Sliders began with {source}."
        )
        shown = [render.numbers(scored, note), render.tokens(analysis, scored, number)]
        if number is None:
            return [*shown, _HINT, ""]
        choices = analysis.choices(number, now, _CHOICES)
        decode = explorer.store.lm.loaded.decode
        told = render.token_detail(analysis, scored, number, now, [(decode([c.token]), c) for c in choices])
        found = explorer.sources(analysis, number, now, _SOURCES)
        return [*shown, told, render.neighbours(found, decode([int(analysis.ids[number])]), now.k)]

    def begin(words: str, *values: float) -> list[Any]:
        return [words, None, *refresh(words, None, *values)]

    def pick(words: str, weight: float, heat: float, count: float, event: gr.EventData) -> list[Any]:
        number = int(event.index)
        return [number, *refresh(words, number, weight, heat, count)]

    shown = [numbers, text, detail, sources]
    quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    button.click(begin, [box, *sliders], [read, chosen, *shown], api_visibility="private")
    text.click(pick, [read, *sliders], [chosen, *shown], **quick)
    for slider in sliders:
        slider.change(refresh, [read, chosen, *sliders], shown, trigger_mode="always_last", **quick)
    if explorer.example:
        numbers.value, text.value = refresh(explorer.example, None, weight.value, heat.value, count.value)[:2]


def _temperatures(middle: float) -> tuple[float, float, float, float]:
    """Least, most, first and step of a slider whose middle part is where the best temperature was found."""
    step = float(f"{middle / 16:.1g}")
    return step, round(middle * 6 / step) * step, max(step, round(middle / step) * step), step
