"""``knnstore explore``."""

from typing import Any

import click

from knnstore.cli.options import store_option
from knnstore.cli.output import show


@click.command()
@store_option
@click.option("--model", help="Folder, name or hub id of the LM. Default: $KNNSTORE_MODEL, else the shipped wiki-lm.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--nprobe", type=click.IntRange(1), help="Lists searched per query. Default: the index's.")
@click.option("--exact", is_flag=True, help="Search every key; needs no index.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="Port of the page; 0: any free port."
)
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in the browser.")
def explore(port: int, browser: bool, store: str | None, model: str | None, device: str, **searching: Any) -> None:
    """Explore a store in the browser.

    Shows the gain and the sources of every token of a text. The page is served to this machine only and loads nothing
    from elsewhere. Stop it with Ctrl-C.
    """
    from knnstore.api import open as open_api
    from knnstore.errors import UsageError

    try:
        from knnstore.explore.serve import HOST, make_app, open_port, serve
    except ModuleNotFoundError as error:
        raise UsageError(
            f"explore needs {error.name}, which isn't installed: pip install 'knnstore[explore]'"
        ) from None
    from knnstore.explore.explorer import Explorer

    opened = open_api(store, model, device=device)
    if opened.task == "seq2seq":
        raise UsageError(
            f"{opened.name} holds pairs of texts, which the page can't show: try 'knnstore generate --prompt TEXT "
            "--explain', 'knnstore neighbours' or 'knnstore score --report FILE'"
        )
    listening = open_port(port)
    with listening:
        show("explore   loading the LM, opening the store and reading an example", err=True)
        app = make_app(Explorer(opened, **searching))
        address = f"http://{HOST}:{listening.getsockname()[1]}"
        show(f"page      {address} (stop with Ctrl-C)")
        if browser:
            click.launch(address)
        serve(app, listening)
